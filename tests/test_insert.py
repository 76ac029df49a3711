"""Laws of inserted layers: a silent one changes no bit, the file is the overlay, dropping it gives the source back."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES, LLAMA, MOE, tiny_model
from safetensors.torch import load_file
from test_plan_laws import plan_of_edits
from transformers import AutoConfig, AutoModelForCausalLM

from shoal import load_recipe
from shoal.checkpoint.in_memory import cut
from shoal.checkpoint.verify import verify
from shoal.checkpoint.write import write
from shoal.edits.drop import Drop
from shoal.edits.inits import INITS
from shoal.edits.insert import Insert
from shoal.edits.refit import Refit
from shoal.edits.student_of import student_of, with_derived
from shoal.engine.open import open_model
from shoal.engine.passes import run_pass
from shoal.engine.streamed import open_streamed
from shoal.engine.student import TEACHER
from shoal.engine.view import DecoderView
from shoal.evaluate.cost import cost
from shoal.export.exporter import Options, StudentFolder
from shoal.export.mergekit import MERGEKIT
from shoal.recipes.table import RECIPES
from shoal.run.refusals import refuse_named
from shoal.select.growth import deepest, new_layers
from shoal.select.model_size import model_size
from shoal.select.places import inserts
from shoal.show.report.layer_strip import strip
from shoal.words.structure import kept_layers, units_off
from shoal.words.types import Batch

IDS_BT = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(0))
BLENDS = [name for name, init in INITS.items() if init.weights == "blend"]
NOT_PREDICTED = [name for name, init in INITS.items() if init.weights != "predicted"]


def grown(view, *edits):
    return plan_of_edits(edits, n_layers=view.n_layers)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A streamed and a resident view of one folder."""
    folder = tmp_path_factory.mktemp("source") / "m"
    tiny_model("gemma2", n_layers=6).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_silent_layer_changes_no_bit_in_any_family(family, tmp_path):
    """In memory and written; where a family's config cannot say it, one line says why and nothing is written."""
    model = tiny_model(family, n_layers=4)
    model.save_pretrained(tmp_path / "m")
    view = DecoderView(open_model(tmp_path / "m").model)
    plan = grown(view, Insert(after=1, init="identity", of=(1,)))
    expected = view.logits(Batch(IDS_BT))
    assert torch.equal(view.logits(Batch(IDS_BT), student=student_of(view, plan)), expected)
    try:
        write(view, tmp_path / "m", plan, tmp_path / "s")
    except ValueError as reason:
        assert len(str(reason)) > 20 and not (tmp_path / "s").exists()
        assert family in ("smollm3", "qwen3_moe", "deepseek_v3"), reason
        return
    checked = verify(tmp_path / "s", ids_BT=IDS_BT, reference=lambda ids: expected)
    assert checked.size.layers == 5 and checked.logit_difference == 0.0


HYBRID = dict(mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_n_groups=1)
FURTHER_WRITERS = {
    "granitemoeshared": dict(MOE, shared_intermediate_size=48),
    "granitemoehybrid": dict(MOE, **HYBRID, shared_intermediate_size=48, layer_types=["full_attention", "linear_attention"]),
    "granitemoehybrid dense": dict(MOE, **HYBRID, num_local_experts=0, layer_types=["full_attention", "linear_attention"]),
    "falcon_h1": dict(LLAMA, **HYBRID, mamba_d_ssm=64),
    "lfm2": dict(LLAMA, block_multiple_of=8, layer_types=["conv", "full_attention"]),
}


def of_kind(name, **fields):
    """A model of two layers whose matrices move the stream."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.split()[0], **fields, num_hidden_layers=2)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.ndim >= 2 or path.endswith("bias"):
                parameter.normal_(0.0, 0.1)
    return model


@pytest.mark.parametrize("kind", FURTHER_WRITERS)
def test_a_silent_layer_with_further_writers_changes_no_bit(kind, tmp_path):
    """Shared experts and state spaces beside, or in place of, attention and MLP fall silent, too; in memory and written."""
    of_kind(kind, **FURTHER_WRITERS[kind]).save_pretrained(tmp_path / "m")
    view = DecoderView(open_model(tmp_path / "m").model)
    plan = grown(view, Insert(after=0, init="identity", of=(0,)), Insert(after=1, init="identity", of=(1,)))
    expected = view.logits(Batch(IDS_BT))
    assert torch.equal(view.logits(Batch(IDS_BT), student=student_of(view, plan)), expected)
    write(view, tmp_path / "m", plan, tmp_path / "s")
    assert verify(tmp_path / "s", ids_BT=IDS_BT, reference=lambda ids: expected).logit_difference == 0.0


@pytest.mark.parametrize("init", ["identity", "slayer"])
def test_a_layer_that_cannot_be_silent_is_refused_in_one_line(init, tmp_path):
    """MiniMax norms the stream and multiplies it, so zero maps make no identity: nothing is begun, planned or written."""
    of_kind("minimax", **dict(MOE, layer_types=["full_attention"] * 2)).save_pretrained(tmp_path / "m")
    view = DecoderView(open_model(tmp_path / "m").model)
    edit = Insert(after=0, init=init, of=(0,))
    inputs = SimpleNamespace(
        recipe=load_recipe("grow", {"grow": {"to": 3, "init": init}}), view=view, opened=SimpleNamespace(quantised=None)
    )
    for refused in (
        lambda: student_of(view, grown(view, edit)),
        lambda: refuse_named(inputs),
        lambda: edit.derived(view) or student_of(view, grown(view, edit)),
    ):
        with pytest.raises(ValueError, match=r"'minimax': layer \d is not the identity .*; use --init copy") as error:
            refused()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_silent_layer_trains_in_every_family(family):
    """Its output maps get a gradient, so that training can start from the source."""
    view = DecoderView(tiny_model(family, n_layers=4))
    (step,) = student_of(view, grown(view, Insert(after=1, init="identity", of=(1,)))).behind(1)
    reading = view.read(Batch(IDS_BT))
    leaves = {name: torch.zeros_like(value.contiguous()).requires_grad_() for name, value in step.overrides.items()}
    h_BTD = reading.h_BTD
    out_BTD = view.run_step(type(step)(1, overrides=leaves), h_BTD, reading)
    out_BTD.square().sum().backward()
    assert any(leaf.grad is not None and leaf.grad.abs().max() > 0 for leaf in leaves.values())


@pytest.mark.in_turn(2)
@pytest.mark.parametrize("init", NOT_PREDICTED)
@pytest.mark.parametrize("resident", ["all", 1])
def test_the_written_file_is_the_student(init, resident, saved, tmp_path):
    """All inits, layers of two kinds in turn; in memory, streamed, and cut in memory."""
    if resident == "all":
        view = DecoderView(open_model(saved).model)
    else:
        opened, streamed = open_streamed(saved, n_resident=1)
        view = DecoderView(opened.model, residency=streamed)
    plan = grown(view, Insert(after=1, init=init, of=(1, 1)), Insert(after=3, init=init, of=(2, 3)))
    student = student_of(view, plan)
    expected = view.logits(Batch(IDS_BT), student=student)
    write(view, saved, plan, tmp_path / "s")
    checked = verify(tmp_path / "s", ids_BT=IDS_BT, reference=lambda ids: expected)
    assert checked.logit_difference == 0.0 and checked.size.layers == 10
    assert checked.size == model_size(view).after(plan.structure)
    if resident == "all":
        assert torch.equal(cut(view, student)(IDS_BT).logits, expected)
        assert cost(view, context=8, student=student).parameters == checked.size.parameters
    kinds = json.loads((tmp_path / "s" / "config.json").read_text())["layer_types"]
    source = view.config.layer_types
    assert kinds == [source[slot.like] for slot in plan.structure]


def test_insert_then_drop_gives_the_source_back(saved, tmp_path):
    """Of the grown checkpoint, the layers that were put in are dropped: every tensor and the config are the source's."""
    view = DecoderView(open_model(saved).model)
    plan = grown(view, Insert(after=1, init="mean", of=(1, 1)), Insert(after=4, init="copy", of=(4,)))
    write(view, saved, plan, tmp_path / "grown")
    back = DecoderView(open_model(tmp_path / "grown").model)
    new = [i for i, slot in enumerate(plan.structure) if slot.is_inserted]
    write(back, tmp_path / "grown", grown(back, Drop(indices=tuple(new))), tmp_path / "back")
    ours, theirs = load_file(tmp_path / "back" / "model.safetensors"), load_file(saved / "model.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    config, source = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "back", saved))
    assert {**config, **source} == config  # The config states some fields under the names of older versions, too.


def test_blends_are_what_their_formula_says():
    view = DecoderView(tiny_model("llama", n_layers=4))
    layers = [dict(layer.state_dict()) for layer in view.model.model.layers]
    for init, points in (("mean", (0.5, 0.5)), ("interpolate", (1 / 3, 2 / 3))):
        plan = grown(view, Insert(after=1, init=init, of=(1, 1)))
        values = with_derived(view, plan, {})
        for i, t in enumerate(points):
            for name in layers[1]:
                torch.testing.assert_close(
                    values[f"insert.1.{i}.{name}"], (1 - t) * layers[1][name] + t * layers[2][name], atol=1e-6, rtol=1e-6
                )


def test_layers_on_a_line_are_filled_in_by_interpolation():
    """Where the weights of the layers lie on a line, the layer between two of them is the one that was taken out."""
    view = DecoderView(tiny_model("llama", n_layers=4))
    layers = view.model.model.layers
    with torch.no_grad():
        for name, value in layers[1].named_parameters():
            value.copy_((dict(layers[0].named_parameters())[name] + dict(layers[2].named_parameters())[name]) / 2)
    whole = view.logits(Batch(IDS_BT))
    plan = grown(view, Drop(indices=(1,)), Insert(after=0, init="mean", of=(0,)))
    # Layer 1 is gone, so the layer behind 0 blends 0 with the next one of the source, which is 1; 0 and 2 are blended by hand.
    values = {
        f"insert.0.0.{name}": torch.lerp(value, layers[2].state_dict()[name], 0.5)
        for name, value in layers[0].state_dict().items()
    }
    torch.testing.assert_close(view.logits(Batch(IDS_BT), student=student_of(view, plan, values)), whole, atol=1e-5, rtol=1e-5)


def test_a_pass_of_grown_students_shares_prefixes_and_keeps_the_bits(saved):
    """In batch order and layer by layer from disk, also a range that runs again."""
    opened, streamed = open_streamed(saved, n_resident=2)
    ends = {}
    for name, view in (
        ("resident", DecoderView(open_model(saved).model)),
        ("streamed", DecoderView(opened.model, residency=streamed)),
    ):
        plans = [grown(view, Insert(after=3, init="copy", of=(2, 3))), grown(view, Insert(after=3, init="identity", of=(3,)))]
        students = [TEACHER, *(student_of(view, plan) for plan in plans)]
        found = []
        run_pass(
            view, [Batch(IDS_BT)], students=students, sink=lambda _, ends, to=found: to.append([one.clone() for one in ends])
        )
        ends[name] = found[0]
        assert torch.equal(found[0][0], found[0][2]) and not torch.equal(found[0][0], found[0][1])
    assert all(torch.equal(a, b) for a, b in zip(ends["resident"], ends["streamed"], strict=True))


def test_new_layers_are_no_layers_of_the_source():
    view = DecoderView(tiny_model("llama", n_layers=4))
    plan = grown(
        view,
        Insert(after=1, init="identity", of=(1,)),
        Drop(indices=(2,)),
        Refit(layer=1, parameters=("mlp.down_proj.weight",)),
    )
    assert kept_layers(plan.structure) == (0, 1, 3) == plan.kept_layers
    assert plan.removed_layers == plan.absent_layers == (2,) and not units_off(plan.structure)
    assert plan.n_layers_after == 4 and "1 new behind 1" in str(plan)
    assert str(strip(plan)).count('class="new"') == 1


@pytest.mark.parametrize(
    ("n_new", "init", "where", "after"),
    [
        (8, "identity", "spread", [3, 7, 11, 15, 19, 23, 27, 31]),
        (8, "slayer", "shallow", [1, 3, 5, 7, 9, 11, 13, 15]),
        (16, "lesa", "deep", list(range(15, 31))),
        (3, "copy", "4,4,9", [4, 4, 9]),
    ],
)
def test_places_are_those_of_the_papers(n_new, init, where, after):
    edits = inserts(32, n_new, INITS.named(init), where)
    assert [edit.after for edit in edits for _ in edit.of] == after


def test_slayer_puts_its_layers_where_its_paper_does_behind_a_cut_of_the_deepest():
    config = RECIPES["slayer"].recipe.grow
    gone = deepest(config, 32)
    assert [edit.after for edit in new_layers(config, 32, gone)] == [1, 3, 5, 7, 9, 11, 13, 15] and gone == (30, 31)


def test_a_range_is_the_row_of_solar():
    (edit,) = inserts(32, 16, INITS.named("copy"), "range")
    row = [slot.like for slot in plan_of_edits((edit,), n_layers=32).structure]
    assert row == [*range(24), *range(8, 32)]


def test_mergekit_is_told_the_row_of_a_repeated_range():
    """Two slices, as SOLAR's own file has them; a growing with zeros or blends is refused."""
    plans = [plan_of_edits(inserts(32, 16, INITS.named(init), "range"), n_layers=32) for init in ("copy", "identity")]
    solar, silent = (StudentFolder(Path("x"), {}, plan) for plan in plans)
    done = MERGEKIT.write(solar, None, Options())
    assert "[0, 24]" in done.text and "[8, 32]" in done.text
    assert MERGEKIT.refuses(solar, Options()) is None and MERGEKIT.verify(solar, done) == {"slices": 2, "layers": 48}
    assert MERGEKIT.refuses(silent, Options()) is not None


@pytest.mark.parametrize(
    ("n_new", "init", "where", "said"),
    [
        (0, "copy", "spread", "at least 1"),
        (2, "copy", "somewhere", "is not a place"),
        (2, "copy", "1", "names 1 places"),
        (1, "copy", "9", "no layer that is kept"),
        (1, "mean", "3", "on either side"),
        (5, "copy", "range", "at most the 4 layers"),
        (2, "mean", "range", "blends them"),
    ],
)
def test_places_that_cannot_be_are_refused(n_new, init, where, said):
    with pytest.raises(ValueError, match=said):
        inserts(4, n_new, INITS.named(init), where)


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ((Insert(after=1, init="copy", of=(1,)), Insert(after=1, init="mean", of=(1,))), "put twice behind layer 1"),
        ((Insert(after=4, init="copy", of=(1,)),), "not in 0..3"),
        ((Insert(after=1, init="copy", of=(7,)),), "not in 0..3"),
        ((Drop(indices=(0, 1, 2, 3)), Insert(after=1, init="copy", of=(1,))), "keep at least one"),
    ],
)
def test_edits_that_do_not_go_together_are_refused(edits, said):
    with pytest.raises(ValueError, match=said):
        plan_of_edits(edits, n_layers=4)


def test_values_that_are_not_those_of_the_new_layers_are_refused(tmp_path):
    model = tiny_model("llama", n_layers=3)
    model.save_pretrained(tmp_path / "m")
    view = DecoderView(model)
    plan = grown(view, Insert(after=0, init="lesa", of=(0,)))
    with pytest.raises(ValueError, match="insert.0.0.*missing"):
        student_of(view, plan)
    with pytest.raises(ValueError, match="missing"):
        write(view, tmp_path / "m", plan, tmp_path / "s")
    good = with_derived(view, grown(view, Insert(after=0, init="mean", of=(0,))), {})
    with pytest.raises(ValueError, match="shape"):
        student_of(view, plan, {name: value[:1] for name, value in good.items()})
    with pytest.raises(ValueError, match="belong to no edit"):
        student_of(view, grown(view, Insert(after=0, init="copy", of=(0,))), good)
