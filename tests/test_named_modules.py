"""Texts that name modules mean the same modules after a cut, renumbered; what cannot be rewritten is refused."""

import fnmatch
import json
import re
from itertools import combinations

import pytest
from families import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.checkpoint.named_modules import Names, renumbered
from shoal.checkpoint.rewrite import rewrite
from shoal.checkpoint.save import save
from shoal.edits.drop import Drop
from shoal.edits.plan import Plan
from shoal.words.structure import Size

N = 12
PARTS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj", "mlp.experts.1.w1", "mlp.experts.11.w1")
NAMES = [f"model.layers.{i}.{part}.weight" for i in range(N) for part in PARTS]
NAMES += ["lm_head.weight", "model.embed_tokens.weight", "model.vision.encoder.layers.11.mlp.fc1.weight"]


def cut(*gone):
    return Names(NAMES, ("model.layers.",), [layer for layer in range(N) if layer not in gone])


def one(text, *gone):
    """What a list of this one text becomes."""
    return renumbered([text], cut(*gone), where="ignore")


def naive(text, name):
    """Whether a text means a module, by the reader whose mark it bears; written independently of the code."""
    if text[:3] == "re:" or text[:2] in ("+:", "-:"):
        return re.match(text.split(":", 1)[1], name) is not None
    return re.match(rf"(?:{text})(?:(?<=\.)|(?=\.|$))", name) is not None or name.endswith(text)


def after(name, gone):
    """A name in the student, or None."""
    found = re.match(r"(model\.layers\.)(\d+)(.*)", name)
    if not found:
        return name
    old = int(found[2])
    return None if old in gone else f"{found[1]}{old - sum(1 for layer in gone if layer < old)}{found[3]}"


def assert_means_the_same(text, gone):
    """The law: what the new text matches in the student is what the old one matched in the source, renumbered."""
    names = cut(*gone).after
    wanted = {after(name, gone) for name in names if naive(text, name)} - {None}
    found = one(text, *gone)
    students = {after(name, gone) for name in names} - {None}
    assert {name for name in students if any(naive(new, name) for new in found)} == wanted, (text, gone, found)


KEPT_OR_REWRITTEN = [
    "lm_head",
    "re:.*lm_head",
    "re:.*mlp.*",
    r"re:.*layers\.11\..*",
    r"re:.*layers.11.mlp.*",
    r"re:.*layers\.(10|11)\..*",
    r"re:.*layers\.(?:9|10|11)\.mlp.*",
    r"re:.*layers\.1[01]\..*",
    r"re:model\.layers\.[0-9]+\.mlp.*",
    r"re:model\.layers\.\d+\.self_attn\.q_proj$",
    r"re:model\.layers\.1\d\.mlp.*",
    r"re:model\.layers\.[0-3]\..*",
    r"re:(model\.layers\.3|model\.layers\.7)\.mlp.*",
    r"re:model\.layers\.7\.mlp\.experts\.1\..*",
    r"+:.*\.11\.self_attn.*",
    r"-:model\.layers\.(0|11)\..*",
    r".*layers\.11\.mlp",
    r"re:.*\.(\d)\.self_attn.*",
    r".*\.layers\.(9|11)\.mlp\.up_proj",
    "model.layers.11",
    "model.layers.1",
    "layers.10.mlp",
    "model.layers.3.mlp.up_proj",
    "model.layers.11.mlp.experts.1.w1",
    "model.vision.encoder.layers.11.mlp",
]


@pytest.mark.parametrize("text", KEPT_OR_REWRITTEN)
@pytest.mark.parametrize("gone", [(5,), (4, 5, 6), (1, 10), (0,), (11,)], ids=str)
def test_a_text_means_the_same_modules_after_the_cut(text, gone):
    assert_means_the_same(text, gone)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.sampled_from(
        [r"re:.*layers\.{}\..*", r"+:model\.layers\.{}\.mlp.*", r".*layers\.{}\.self_attn", "re:.*layers.{}.mlp.*"]
    ),
    st.sets(st.integers(0, N - 1), min_size=1, max_size=4),
    st.sampled_from(["({})", "(?:{})"]),
    st.sets(st.integers(0, N - 1), min_size=1, max_size=6),
)
def test_any_alternatives_of_layers_are_rewritten_or_refused(pattern, layers, group, gone):
    numbers = [str(layer) for layer in sorted(layers)]
    text = pattern.format(numbers[0] if len(numbers) == 1 else group.format("|".join(numbers)))
    try:
        assert_means_the_same(text, tuple(sorted(gone)))
    except ValueError as refusal:
        assert "cannot be renumbered" in str(refusal)


@pytest.mark.parametrize("text", [r"re:.*layers\..\.mlp.*", r"re:.*layers\.(?!1).*\.mlp.*"])
def test_a_pattern_that_depends_on_the_number_and_cannot_be_rewritten_is_refused(text):
    with pytest.raises(ValueError, match="names other modules after the cut"):
        one(text, 2, 3, 4)


def test_globs_are_matched_as_globs():
    text, gone = "model.layers.11*", (3,)
    [new] = one(text, *gone)
    wanted = {after(name, gone) for name in cut(*gone).after if fnmatch.fnmatchcase(name, text)} - {None}
    assert {name for name in cut(*gone).students if fnmatch.fnmatchcase(name, new)} == wanted


def test_what_names_removed_layers_only_goes():
    assert renumbered(["lm_head", "model.layers.1.mlp", r"re:.*layers\.(1|2)\..*"], cut(1, 2), where="ignore") == ["lm_head"]
    assert renumbered({"model.layers.1": {"bits": 2}, "model.layers.3": {"bits": 4}}, cut(1, 2), where="dynamic") == {
        "model.layers.1": {"bits": 4}
    }
    with pytest.raises(ValueError, match="0 places after the cut"):
        renumbered({"block": "model.layers.1"}, cut(1), where="q")


def test_numbers_that_may_be_layers_are_refused():
    with pytest.raises(ValueError, match="keyed by number"):
        renumbered({"bits": {"0": 4, "1": 8}}, cut(1), where="q")
    with pytest.raises(ValueError, match="look like those of layers"):
        renumbered({"skip_layers": [0, 11]}, cut(1), where="q")
    untouched = {"bits": 4, "group": "128", "weight_block_size": [128, 128], "version": "0.15.4", "desc_act": False}
    assert renumbered(untouched, cut(1), where="q") == untouched


def test_outside_of_a_quantisation_section_only_numbered_layers_count():
    texts = ["a 1 b", "model.layers.11.mlp", "11", "the model of layers"]
    found = renumbered(texts, cut(3), where="note", is_about_modules=False)
    assert found == ["a 1 b", "model.layers.10.mlp", "11", "the model of layers"]


def test_every_cut_of_a_literal_is_that_of_its_layer():
    for gone in combinations(range(4), 2):
        for layer in range(4):
            found = one(f"model.layers.{layer}.mlp", *gone)
            assert found == ([] if layer in gone else [f"model.layers.{layer - sum(g < layer for g in gone)}.mlp"])


# A text that names no module of this model, and what is left of it where layer 5 of 12 goes; None: it is refused.
OTHER_NAMES = {
    "layer_7": ["layer_6"],
    "layer_5": [],
    "layers 11": ["layers 10"],
    "blk.7": ["blk.6"],
    "transformer.h.7.mlp": ["transformer.h.6.mlp"],
    "language_model.model.layers.7.mlp": ["language_model.model.layers.6.mlp"],
    "model.layers.7.mlp.down_proj.weight.shape.0": ["model.layers.6.mlp.down_proj.weight.shape.0"],
    "layers/7/mlp": ["layers/6/mlp"],
    "vision_tower.encoder.layers.7": ["vision_tower.encoder.layers.7"],
    "model.layers.61.eh_proj": ["model.layers.61.eh_proj"],
    "block_16": ["block_16"],
    "h20": ["h20"],
    "layers 7-9": None,
    "model.layers.7,8": None,
    "model.layers.{7,8}.mlp": None,
    "from layers.3 to layers.9": None,
}


@pytest.mark.parametrize("text", OTHER_NAMES)
@pytest.mark.parametrize("make", [lambda text: [text], lambda text: {text: 4}], ids=["in a list", "as a key"])
def test_a_layer_goes_by_its_number_under_names_of_others_too(text, make):
    wanted = OTHER_NAMES[text]
    if wanted is None:
        with pytest.raises(ValueError, match="speaks of layers and names no module"):
            renumbered(make(text), cut(5), where="q")
    else:
        assert list(renumbered(make(text), cut(5), where="q")) == wanted


def test_settings_of_every_layer_are_refused_and_names_of_every_layer_are_not():
    with pytest.raises(ValueError, match="one setting for each of the 12 layers"):
        renumbered({"kinds": ["nf4", "int8"] * 6}, cut(1), where="q")
    gates = [f"model.layers.{i}.mlp.up_proj" for i in range(N)]
    assert renumbered({"ignore": gates}, cut(1), where="q") == {"ignore": gates[:-1]}


def test_a_layer_that_stands_in_several_places_is_named_in_each():
    repeated = Names(NAMES, ("model.layers.",), [0, 1, 2, 1, 2, 3])
    assert renumbered(["model.layers.1.mlp"], repeated, where="ignore") == ["model.layers.1.mlp", "model.layers.3.mlp"]
    assert renumbered([r"re:.*layers\.2\.mlp.*"], repeated, where="ignore") == [r"re:.*layers\.(?:2|4)\.mlp.*"]
    with pytest.raises(ValueError, match="2 places"):
        renumbered({"block": "model.layers.1"}, repeated, where="q")


SECTIONS = {
    "llm_int8_skip_modules": lambda text: {"quant_method": "bitsandbytes", "llm_int8_skip_modules": ["lm_head", text]},
    "modules_to_not_convert": lambda text: {"quant_method": "fp8", "modules_to_not_convert": [text]},
    "ignore": lambda text: {"quant_method": "compressed-tensors", "ignore": [f"re:{text}"]},
    "targets": lambda text: {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"targets": [f"re:{text}"]}}},
    "dynamic": lambda text: {"quant_method": "gptq", "bits": 4, "dynamic": {f"+:{text}": {"bits": 8}}},
}


@pytest.mark.parametrize("section", SECTIONS)
def test_a_checkpoint_is_written_with_its_patterns_in_the_students_numbers(section, tmp_path):
    save(tiny_model("llama"), None, tmp_path / "source")
    stated = SECTIONS[section](r".*layers\.5\.mlp.*")
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    (tmp_path / "source" / "config.json").write_text(json.dumps({**config, "quantization_config": stated}))
    (tmp_path / "source" / "quantize_config.json").write_text(json.dumps(stated))  # Other engines look there.
    size = Size(layers=6, parameters=0)
    plan = Plan(source="m", source_hash="", teacher="m", n_layers=6, edits=(Drop(indices=(1, 2)),), before=size, after=size)
    out = rewrite(tmp_path / "source", plan, tmp_path / "out")
    wanted = SECTIONS[section](r".*layers\.3\.mlp.*")
    assert json.loads((out / "config.json").read_text())["quantization_config"] == wanted
    assert json.loads((out / "quantize_config.json").read_text()) == wanted
