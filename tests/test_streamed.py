"""A streamed model gives the bits of the resident one, reads each weight once a pass, and holds no more layers than it may."""

import json
import os
from pathlib import Path

import pytest
import torch
from families import VOCAB, every_family, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from shoal import compress, load_recipe
from shoal.engine.open import open_model
from shoal.engine.opening import Opening
from shoal.engine.passes import run_pass
from shoal.engine.shards import read_shards
from shoal.engine.spill import Spill, free_memory
from shoal.engine.streamed import bytes_by_layer, open_streamed
from shoal.engine.student import TEACHER, Student
from shoal.engine.view import DecoderView, Tap
from shoal.run.job import SHARE_FOR_WEIGHTS, layers_in_memory, weights_and_room
from shoal.words.types import Batch, Unit

IDS = torch.randint(3, VOCAB, (3, 4, 9), generator=torch.Generator().manual_seed(0))
MASK_BT = torch.arange(9)[None] < torch.tensor([5, 9, 2, 7])[:, None]
BATCHES = [Batch(IDS[0], None, 0), Batch(IDS[1], None, 1), Batch(IDS[2].where(MASK_BT, 0), MASK_BT, 2)]
STUDENTS = [
    TEACHER,
    Student(frozenset({Unit("layer", 4)})),
    Student(frozenset({Unit("layer", 1), Unit("layer", 2)})),
    Student(frozenset({Unit("attn", 3), Unit("layer", 5)})),
]


@pytest.fixture(params=every_family(), scope="module")
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    tiny_model(request.param).save_pretrained(folder, max_shard_size="20KB")
    opened, streamed = open_streamed(folder)
    return DecoderView(open_model(folder).model), DecoderView(opened.model, residency=streamed)


@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3_moe", "gemma3_text"])
def test_every_tensor_has_the_dtype_and_bits_of_the_resident_one(name, stored, dtype, tmp_path):
    tiny_model(name).to(getattr(torch, stored)).save_pretrained(tmp_path)
    whole = open_model(tmp_path, Opening(dtype=dtype)).model
    opened, streamed = open_streamed(tmp_path, Opening(dtype=dtype))
    for index, theirs in enumerate(whole.get_submodule(streamed.path)):
        with streamed.layer(index) as ours:
            for tensor, value in theirs.state_dict().items():
                assert ours.state_dict()[tensor].dtype == value.dtype, tensor
                assert torch.equal(ours.state_dict()[tensor], value), tensor


class Keep:
    """Remembers everything it sees, in order; samples of a batch are joined."""

    def __init__(self, taps):
        self.wanted, self.seen, self.longest = taps, [], 0

    def taps(self, view):
        return self.wanted

    def update(self, batch, values):
        self.longest = max(self.longest, len(batch.ids_BT))
        if not self.seen or self.seen[-1][0] != batch.index:
            self.seen.append((batch.index, {tap: value.clone() for tap, value in values.items()}))
        else:
            seen = self.seen[-1][1]
            seen.update({tap: torch.cat([seen[tap], value]) for tap, value in values.items()})


def everything(view):
    taps = [Tap("boundary", i) for i in range(view.n_layers + 1)] + [Tap("attn_map_in", 2)]
    keep, logits = Keep(taps), []
    run_pass(
        view,
        BATCHES,
        observers=[keep],
        students=STUDENTS,
        sink=lambda reading, finals: logits.append([view.head(h, reading) for h in finals]),
    )
    return keep.seen, logits


def test_streamed_states_and_students_are_bit_equal_and_in_batch_order(pair):
    resident, streamed = pair
    (ours, our_logits), (theirs, their_logits) = everything(streamed), everything(resident)
    assert [index for index, _ in ours] == [0, 1, 2]
    for (_, a), (_, b) in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[tap], b[tap]) for tap in a)
    for a, b in zip(our_logits, their_logits, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_each_weight_is_read_once_a_pass_and_one_layer_is_held(pair):
    resident, streamed = pair
    layers = resident.model.get_submodule(resident.layers_path)
    stored = {id(t): t for t in [*layers.parameters(), *layers.buffers()] if t.is_floating_point() or t.numel() > 1}
    persistent = {name for name, _ in layers.state_dict().items()}
    n_bytes = sum(value.numel() * value.element_size() for name, value in layers.state_dict().items() if name in persistent)
    assert stored
    everything(streamed)  # Whatever was read ahead before is now behind us.
    before = streamed.residency.bytes_read
    held = []
    for layer in streamed._stub_layers:
        layer.register_forward_pre_hook(
            lambda *_: held.append(sum(not any(p.is_meta for p in one.parameters()) for one in streamed._stub_layers))
        )
    run_pass(streamed, BATCHES, students=[TEACHER], sink=lambda *_: None)
    assert streamed.residency.bytes_read - before == n_bytes
    assert held and max(held) == 1


def test_observers_of_a_streamed_model_get_one_sample_at_a_time(pair):
    for view, longest in zip(pair, (max(len(batch.ids_BT) for batch in BATCHES), 1), strict=True):
        keep = Keep([Tap("boundary", 0)])
        run_pass(view, BATCHES, observers=[keep])
        assert keep.longest == longest
        assert [len(values[Tap("boundary", 0)]) for _, values in keep.seen] == [len(batch.ids_BT) for batch in BATCHES]


@pytest.mark.parametrize("limit", [0, 300, 10**9])
def test_states_that_do_not_fit_come_back_from_the_file_as_they_were(limit):
    spill = Spill(limit)
    values = {i: torch.randn(i + 1, 7, dtype=dtype) for i, dtype in enumerate([torch.float32, torch.bfloat16] * 5)}
    for key, value in values.items():
        spill.put(key, value)
    for key in (3, 4):
        spill.drop(key)
    spill.put("again", values[3])
    assert torch.equal(spill.get("again"), values[3])
    assert torch.equal(torch.cat([spill.get_sample("again", row) for row in range(4)]), values[3])
    for key in values.keys() - {3, 4}:
        got = spill.get(key)
        assert got.dtype == values[key].dtype and torch.equal(got, values[key])
    assert (spill.bytes_on_disk > 0) == (limit < 10**9)
    spill.close()


def test_a_pass_that_spills_gives_the_same_bits(pair, monkeypatch):
    resident, streamed = pair
    monkeypatch.setattr("shoal.engine.passes.Spill", lambda *_: Spill(0))
    (ours, our_logits), (theirs, their_logits) = everything(streamed), everything(resident)
    for (_, a), (_, b) in zip(ours, theirs, strict=True):
        assert all(torch.equal(a[tap], b[tap]) for tap in a)
    assert all(torch.equal(x, y) for a, b in zip(our_logits, their_logits, strict=True) for x, y in zip(a, b, strict=True))


def test_free_memory_is_plausible():
    assert 10**6 < free_memory() < 10**15


def test_a_missing_tensor_is_one_clear_line(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    values = load_file(tmp_path / "model.safetensors")
    del values["model.layers.2.mlp.up_proj.weight"]
    save_file(values, tmp_path / "model.safetensors", metadata={"format": "pt"})
    opened, streamed = open_streamed(tmp_path)
    view = DecoderView(opened.model, residency=streamed)
    with pytest.raises(ValueError, match="mlp.up_proj.weight"):
        view.logits(BATCHES[0])


def recipe(small, **changes):
    text = {"sources": [small["text"]], "samples": 12, "length": 16, "selection": 8, "evaluation": 8}
    return load_recipe("default", {"model": small["model"], "drop": "2", "replace": "none", "text": text, **changes})


def contents(folder, *, but=()):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name not in but}


SAME_FILES = ("scan.json", "scan.safetensors", "plan.json", "fit.safetensors", "train.safetensors")


@pytest.mark.parametrize(
    ("resident", "changes"),
    [
        pytest.param("1", {}, marks=pytest.mark.slow),
        pytest.param("2", {}, marks=pytest.mark.slow),
        pytest.param("4", {}, marks=pytest.mark.slow),
        ("1", {"repair": "sweep"}),
        pytest.param("2", {"repair": "refit", "max_spans": 2}, marks=pytest.mark.slow),
        ("1", {"replace": "layer", "train": {"tokens": 500}}),
    ],
    ids=str,
)
def test_a_streamed_run_leaves_the_same_files(resident, changes, small, tmp_path):
    whole = compress(recipe(small, **changes), tmp_path / "whole", opening=Opening(resident="all"))
    streamed = compress(recipe(small, **changes), tmp_path / "streamed", opening=Opening(resident=resident))
    for file in SAME_FILES:
        assert (whole.folder / file).exists() == (streamed.folder / file).exists(), file
        assert not (whole.folder / file).exists() or (whole.folder / file).read_bytes() == (streamed.folder / file).read_bytes()
    assert contents(whole.model, but=["README.md"]) == contents(streamed.model, but=["README.md"])
    assert streamed.evaluation.quality == whole.evaluation.quality
    assert streamed.evaluation.student.perplexity == whole.evaluation.student.perplexity
    assert streamed.evaluation.teacher == whole.evaluation.teacher
    assert AutoModelForCausalLM.from_pretrained(streamed.model).config.num_hidden_layers == 4


def test_a_scan_in_memory_is_continued_by_a_streamed_run(small, tmp_path):
    compress(recipe(small), tmp_path / "run", opening=Opening(resident="all"))
    assert compress(recipe(small), tmp_path / "run", opening=Opening(resident="1")).plan.after.layers == 4


def test_what_cannot_be_streamed_is_said(small, tmp_path):
    for wrong in ("0", "some", "-1", "1.5", "²", ""):
        with pytest.raises(ValueError, match="--resident"):
            compress(recipe(small), tmp_path / "b", opening=Opening(resident=wrong))


def test_auto_streams_only_what_does_not_fit(small, tmp_path, monkeypatch):
    assert layers_in_memory(small["model"], Opening()) is None
    monkeypatch.setattr("shoal.engine.spill.free_memory", lambda: 1000)
    assert layers_in_memory(small["model"], Opening()) == 2


@pytest.mark.parametrize(("room", "is_all"), [(0.0, False), (0.5, False), (1.0, False), (1.4, False), (1.5, True)])
def test_auto_holds_as_many_layers_as_half_of_the_share_for_weights(room, is_all, tmp_path, monkeypatch):
    tiny_model("llama", n_layers=12).save_pretrained(tmp_path)
    n_bytes, _ = weights_and_room(str(tmp_path), Opening())
    monkeypatch.setattr("shoal.engine.spill.free_memory", lambda: int(room * n_bytes))
    held = layers_in_memory(str(tmp_path), Opening())
    assert (held is None) == is_all
    if held is not None:
        outside, layer = bytes_by_layer(read_shards(tmp_path))
        assert outside + 12 * layer == n_bytes
        half = SHARE_FOR_WEIGHTS * int(room * n_bytes) / 2
        assert held == 2 or outside + (held + 1) * layer <= half  # One layer is read ahead.
        assert outside + (held + 2) * layer > half


def test_auto_needs_no_config_of_custom_code(tmp_path, monkeypatch):
    tiny_model("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "model_type": "own", "auto_map": {"AutoModelForCausalLM": "own.Own"}})
    )
    monkeypatch.setattr("shoal.engine.spill.free_memory", lambda: 1000)
    assert layers_in_memory(str(tmp_path), Opening(trust=True)) == 2


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted by Linux")
def test_layers_in_memory_keep_no_file_open(tmp_path):
    tiny_model("mixtral").save_pretrained(tmp_path, max_shard_size="20KB")
    before = len(os.listdir("/proc/self/fd"))
    opened, streamed = open_streamed(tmp_path, n_resident=6)
    logits = DecoderView(opened.model, residency=streamed).logits(BATCHES[0])
    assert torch.isfinite(logits).all() and len(streamed._loaded) == 6
    assert len(os.listdir("/proc/self/fd")) <= before


def test_auto_leaves_room_for_the_student_beside_its_teacher_and_says_what_it_decided(small, shoal, monkeypatch):
    n_bytes, _ = weights_and_room(small["model"], Opening())
    monkeypatch.setattr("shoal.engine.spill.free_memory", lambda: 2 * n_bytes)  # There is room for one of them, not for both.
    options = [small["model"], "--text", small["text"], "--length", "16", "--samples", "8"]
    code, said, _ = shoal("scan", *options, "--out", "scan")
    assert code == 0 and "Layers: all in memory" in said
    code, said, _ = shoal("compress", *options, "--out", "run", "--drop", "2", "--guard", "1", "--repair", "none")
    assert code == 0 and "Layers: 2 in memory, the others are read from disk" in said


def test_released_layers_come_back_as_they_were(pair):
    resident, streamed = pair
    before = streamed.logits(BATCHES[0])
    streamed.residency.settle(())
    assert all(p.is_meta for layer in streamed._stub_layers for p in layer.parameters())
    assert not streamed.residency._ahead
    assert torch.equal(streamed.logits(BATCHES[0]), before)


def test_a_further_pass_reads_only_the_layers_that_do_not_stay(tmp_path):
    """Evicting the oldest would read every layer in every pass, evicting the newest one that may be in use."""
    tiny_model("llama").save_pretrained(tmp_path)
    opened, streamed = open_streamed(tmp_path, n_resident=4)
    view = DecoderView(opened.model, residency=streamed)
    sizes = [sum(slot.n_bytes for _, slot in streamed._places[layer].values()) for layer in range(6)]
    streamed.settle(())  # The bytes are those that opening looked at.
    before, logits = streamed.bytes_read, []
    for _ in range(3):
        run_pass(view, BATCHES, students=[TEACHER], sink=lambda reading, finals: logits.append(view.head(finals[0], reading)))
    assert streamed.bytes_read - before == sum(sizes) + 2 * sum(sizes[2:])
    with streamed.layer(0) as outer, streamed.layer(5):
        assert not any(p.is_meta for p in outer.parameters())
    assert all(torch.equal(a, b) for a, b in zip(logits[:3], logits[6:], strict=True))


def test_of_held_layers_those_that_are_needed_stay_where_they_are(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    opened, streamed = open_streamed(tmp_path, n_resident=3)
    view = DecoderView(opened.model, residency=streamed)
    view.logits(BATCHES[0])

    def held():
        return [index for index, layer in enumerate(view._stub_layers) if not any(p.is_meta for p in layer.parameters())]

    assert held() == [3, 4, 5]
    streamed.settle({1, 4})
    assert held() == [4]
    before = streamed.bytes_read
    with streamed.layer(4):
        assert streamed.bytes_read == before


def test_states_may_be_limited_to_a_number_of_bytes(pair, monkeypatch):
    spills = []

    class Watched(Spill):
        def close(self):
            spills.append((self.limit, self.bytes_on_disk))
            super().close()

    monkeypatch.setattr("shoal.engine.passes.Spill", Watched)
    monkeypatch.setattr(pair[1].residency, "state_bytes", 5000)
    everything(pair[1])
    assert all(limit == 5000 and written > 0 for limit, written in spills) and spills
