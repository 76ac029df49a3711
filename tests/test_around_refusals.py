"""Merging, growing and thinning that cannot be: one line of the command, exit 2, and no folder left behind."""

import json

import pytest
from families import LLAMA
from quantised_world import write_quantised
from test_unread_options import one_line
from transformers import LlamaConfig, LlamaForCausalLM
from world import write_model, write_text

from shoal.edits.merge_edit import Merge
from shoal.edits.plan import Plan
from shoal.engine.source import fingerprint
from shoal.words.structure import Size


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A model of six layers, an unusual one whose maps have 34 and 50 inputs, one in 8 bits, and a text."""
    folder = tmp_path_factory.mktemp("places")
    write_model(folder / "model")
    write_model(folder / "odd")
    sizes = {"hidden_size": 34, "intermediate_size": 50, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 34}
    LlamaForCausalLM(LlamaConfig(**{**LLAMA, **sizes, "num_hidden_layers": 6})).save_pretrained(folder / "odd")
    write_quantised(folder / "packed", "fp8")
    write_text(folder / "text.jsonl")
    return folder


TEXT = ("--samples", 8, "--length", 16, "--no-speed")

WRONG = [
    ("grow model --to 4", "the model has 6 before anything is put in"),
    ("grow model --to 50%", "the model has 6 before anything is put in"),
    ("grow model --to deep", "is not a depth"),
    ("grow model --to 8 --init mein", "did you mean 'mean'"),
    ("grow model --to 8 --where 1,9", "no layer that is kept"),
    ("grow model --to 9 --where 1,2", "names 2 places"),
    ("grow model --to 8 --init mean --where 1,5", "a layer on either side"),
    ("grow model --to 20 --init lesa", "one layer between two"),
    ("grow model --to 8 --init mean --where range", "blends them"),
    ("grow model --recipe wanda", "puts no layers in"),
    ("grow packed --init identity", "--init identity needs plain weights"),
    ("grow packed --init mean", "--init mean needs plain weights"),
    ("compress model --recipe laco --drop 6", "allows 1..5"),
    ("compress odd --drop 1 --prune wanda:pattern=2:4", "no whole groups of 4"),
    ("compress model --recipe laco --drop 2 --guard 4", "use --guard 1"),
    ("compress model --recipe laco --drop 2 --replace layer", "use --replace none"),
    ("compress model --recipe laco --drop 2 --rounds 2", "leave out --rounds"),
    ("compress model --recipe laco --drop 2 --units attention", "looks for spans"),
    ("compress model --recipe sliding-merge --drop 2 --metric kll", "unknown metric 'kll'"),
    ("compress packed --recipe laco --drop 2", "--select laco needs plain weights"),
    ("prune model --sparsity 120%", "at most 99%"),
    ("prune model --sparsity half", "is no share"),
    ("prune model --allocate owls", "did you mean 'owl'"),
    ("prune model --method wand", "did you mean 'wanda'"),
    ("prune odd --pattern 2:4", "no whole groups of 4"),
    ("prune packed", "--prune needs plain weights"),
    ("prune packed --method wanda --allocate lamp", "--prune needs plain weights"),
]


@pytest.mark.parametrize(("line", "said"), WRONG, ids=[line for line, _ in WRONG])
def test_what_cannot_be_is_one_clear_line(line, said, places, shoal, tmp_path):
    verb, model, *args = line.split()
    code, _, err = shoal(verb, places / model, *args, "--text", places / "text.jsonl", "--out", "run", *TEXT)
    one_line(code, err, said)
    assert not (tmp_path / "run").exists()


def merges(*groups):
    """The merge edits of a plan's file, as somebody writes them."""
    return [
        {"edit": "merge", "into": into, "of": of, "rule": "mean", "parameters": ["mlp.up_proj.weight"]} for into, of in groups
    ]


BY_HAND = [
    (merges((1, [2]), (2, [3])), "layer 2 is edited twice"),
    (merges((1, [2, 3]), (4, [3])), "layer 3 is edited twice"),
    (merges((1, [6])), "layer 6 is not in 0..5"),
    (merges((1, [1])), "names a layer twice"),
    (merges((1, [])), "of"),
    ([*merges((1, [2])), {"edit": "refit", "layer": 2, "parameters": ["mlp.up_proj.weight"]}], "layer 2 is edited twice"),
    ([*merges((1, [2])), {"edit": "insert", "after": 7, "init": "copy", "of": [1]}], "layer 7 is not in 0..5"),
    ([{"edit": "insert", "after": 5, "init": "mean", "of": [5]}], "no layer behind layer 5 is of its kind"),
    ([{"edit": "prune", "layer": 9, "parameters": ["mlp.up_proj.weight"]}], "layer 9 is not in 0..5"),
    ([{"edit": "prune", "layer": 1, "parameters": ["mlp.up_proj.weight"]}], "prune.1.mlp.up_proj.weight"),
    ([{"edit": "merged", "into": 1, "of": [2]}], "merge"),
]


@pytest.mark.parametrize(("edits", "said"), BY_HAND, ids=[said for _, said in BY_HAND])
def test_a_plan_that_somebody_wrote_wrongly_is_one_clear_line(edits, said, places, shoal, tmp_path):
    size = Size(layers=6, parameters=1)
    sound = Plan(
        source=str(places / "model"), source_hash=fingerprint(places / "model"), teacher=str(places / "model"), n_layers=6,
        edits=(Merge(into=1, of=(2,), parameters=("mlp.up_proj.weight",)),), before=size, after=size,
    )  # fmt: skip
    content = {**json.loads(sound.to_json()), "edits": edits}
    (tmp_path / "plan.json").write_text(json.dumps(content))
    code, _, err = shoal("apply", "plan.json", "--out", "made")
    one_line(code, err, said)
    assert not (tmp_path / "made").exists()
