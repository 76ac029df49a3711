"""Tiny students, teachers and texts for the tests of healing."""

import copy

import torch
from families import VOCAB, tiny_config, tiny_model
from transformers import AutoModelForCausalLM

from shoal.train.heal.config import HealConfig
from shoal.train.heal.cut_place import CutPlace
from shoal.train.heal.teachers import RunningTeacher
from shoal.train.heal.text_rows import TextRows
from shoal.train.heal.train import Lesson

KEPT = (0, 1, 4, 5)


def text(n=24, length=12, *, seed=0, padded=False):
    """Random token ids; the same word follows each word, so there is something to learn."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (n, length), generator=draw)
    ids[:, 1::2] = 3 + (ids[:, ::2] * 7) % (VOCAB - 3)
    lengths = torch.full((n,), length)
    if padded:
        lengths = torch.randint(4, length + 1, (n,), generator=draw)
        lengths[0] = length
    return TextRows(ids, lengths, None, "made up", f"made-{seed}-{n}-{length}-{padded}")


def student_of(teacher, kept=KEPT):
    """The teacher without the layers that are not kept, as a model of its own."""
    other = copy.deepcopy(teacher)
    model = other.get_decoder()
    name = "h" if hasattr(model, "h") else "layers"
    setattr(model, name, torch.nn.ModuleList([getattr(model, name)[i] for i in kept]))
    for i, layer in enumerate(getattr(model, name)):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = i
    config = other.config
    types = getattr(config, "layer_types", None)
    if types:
        config.layer_types = [types[i] for i in kept]
    config.num_hidden_layers = len(kept)
    return other


def write_wide(folder, *, n_layers=4, seed=0):
    """A random checkpoint whose maps are wide enough for blocks of 4-bit numbers."""
    wide = tiny_config("llama", n_layers=n_layers)
    wide.hidden_size, wide.intermediate_size, wide.head_dim = 64, 128, 16
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(wide).save_pretrained(folder)
    return folder


def world(family="llama", *, teacher=True, seed=0, n=24, padded=False):
    """A student and its lesson: six layers cut to four."""
    whole = tiny_model(family, n_layers=6, seed=seed)
    student = student_of(whole)
    lesson = Lesson(
        text(n, padded=padded), text(8, seed=1), RunningTeacher(whole) if teacher else None, CutPlace.of_kept(KEPT, 6)
    )
    return student, lesson


def config(**changes):
    """Few small steps."""
    given = dict(method="lora", rank=4, tokens=192, batch=4, micro_batch=2, lr=1e-2, eval_every=2)
    return HealConfig(**{**given, **changes})
