"""Laws of a plan's algebra, over random lists of edits: structure, sizes, written file, order, config and pictures agree."""

import json

import pytest
import torch
from families import FAMILIES, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from shoal.checkpoint.rewrite import rewrite
from shoal.edits.drop import Drop
from shoal.edits.inits import INITS
from shoal.edits.insert import Insert
from shoal.edits.merge_edit import Merge
from shoal.edits.merge_rules import RULES
from shoal.edits.plan import Plan, choice_hash, structure_of
from shoal.edits.prune import Prune
from shoal.edits.refit import Refit
from shoal.edits.replace.replace_edit import Replace
from shoal.edits.student_of import new_attached, student_of, values_of, with_derived
from shoal.engine.view import DecoderView
from shoal.select.model_size import model_size
from shoal.show.report.layer_strip import fates, strip
from shoal.words.structure import Size, absent_layers, intact, kept_layers, stored, units_off
from shoal.words.types import Batch, Unit

N = 8
MAP = "mlp.down_proj.weight"
MERGED = (MAP, "mlp.up_proj.weight", "self_attn.q_proj.weight", "input_layernorm.weight")


def plan_of_edits(edits, n_layers=N):
    size = Size(layers=n_layers, parameters=1)
    return Plan(source="m", source_hash="0", teacher="m", n_layers=n_layers, edits=edits, before=size, after=size)


@st.composite
def merges_of(draw, group):
    """A merge of some layers by any rule, also by weights of one's own."""
    rule = draw(st.sampled_from(list(RULES)))
    own = tuple(draw(st.sampled_from([-0.5, 0.25, 1.0])) for _ in group) if rule == "weighted" else ()
    return Merge(into=group[0], of=tuple(group[1:]), rule=rule, weights=own, parameters=MERGED)


@st.composite
def edit_lists(draw, replace=True, insert=False, merge=False, prune=False):
    """Edits of a model of N layers that do not overlap, in random order, at least one layer left.

    Values are written to layers that stay, to merged ones as well, also twice to one parameter.
    """
    fates_ = draw(st.lists(st.sampled_from(["keep", "drop", "attn", "mlp", "refit", "both"]), min_size=N, max_size=N))
    edits, merged, free = [], [], set(range(N))
    for _ in range(draw(st.integers(0, 2)) if merge else 0):
        group = draw(st.sets(st.sampled_from(sorted(free)), min_size=2, max_size=3))
        edits.append(draw(merges_of(sorted(group))))
        merged.append(min(group))
        free -= group
        for layer in group:
            fates_[layer] = "refit" if layer == min(group) and fates_[layer] == "refit" else "inside"
    start = None
    spans = [(a, b) for a in range(1, N - 1) for b in range(a + 1, N) if set(range(a, b)) <= free]
    if replace and spans and draw(st.booleans()):
        start, stop = draw(st.sampled_from(spans))
        edits.append(Replace(start=start, stop=stop, replacement="layer"))
        fates_[start:stop] = ["inside"] * (stop - start)
    if set(fates_) <= {"drop", "inside"} and not merged:
        fates_[0] = "keep"
    gone = tuple(i for i, fate in enumerate(fates_) if fate == "drop")
    edits += [Drop(indices=gone)] if gone else []
    for kind in ("attn", "mlp"):
        off = tuple(i for i, fate in enumerate(fates_) if fate in (kind, "both"))
        edits += [Drop(kind=kind, indices=off)] if off else []
    edits += [Refit(layer=i, parameters=(MAP,)) for i, fate in enumerate(fates_) if fate == "refit"]
    kept = sorted({*(i for i, fate in enumerate(fates_) if fate not in ("drop", "inside")), *merged})
    thinned = draw(st.sets(st.sampled_from(kept), max_size=2)) if prune and kept else ()
    edits += [Prune(layer=i, parameters=(MAP, "mlp.up_proj.weight"), method="wanda") for i in sorted(thinned)]
    places = draw(st.sets(st.integers(0, N - 1), max_size=3)) if insert else set()
    for after in sorted(places - (set(range(start, stop - 1)) if start else set())):
        init = draw(st.sampled_from(list(INITS)))
        weights = INITS.named(init).weights
        like = st.lists(
            st.integers(0, N - 1 if weights == "source" else N - 2), min_size=1, max_size=1 + (weights != "predicted")
        )
        edits.append(Insert(after=after, init=init, of=tuple(draw(like))))
    return tuple(draw(st.permutations(edits)))


@given(edit_lists(insert=True, merge=True))
def test_the_order_of_structural_edits_that_do_not_overlap_does_not_matter(edits):
    assert structure_of(edits, N) == structure_of(tuple(reversed(edits)), N)


@given(edit_lists(insert=True, merge=True))
def test_what_is_put_in_changes_nothing_that_is_said_of_the_source(edits):
    """Kept, removed and absent layers, units that are off and the picture's boxes are those of the plan without it."""
    plan, without = plan_of_edits(edits), plan_of_edits(tuple(edit for edit in edits if not isinstance(edit, Insert)))
    for name in ("kept_layers", "removed_layers", "absent_layers", "removed_units"):
        assert getattr(plan, name) == getattr(without, name)
    assert tuple(slot for slot in plan.structure if not slot.is_inserted) == without.structure
    assert fates(plan) == fates(without)
    n_new = sum(len(edit.of) for edit in edits if isinstance(edit, Insert))
    assert plan.n_layers_after == without.n_layers_after + n_new
    assert str(strip(plan)).count('class="new"') == n_new
    assert choice_hash(edits) == choice_hash(without.edits) or n_new


@given(edit_lists())
def test_structure_and_units_say_the_same(edits):
    plan = plan_of_edits(edits)
    dropped = {unit for edit in edits if isinstance(edit, Drop) for unit in edit.touches()}
    assert plan.removed_units == dropped
    assert units_off(plan.structure) == {unit for unit in dropped if unit.kind != "layer"}
    replaced = {layer for edit in edits if isinstance(edit, Replace) for layer in edit.span.layers}
    assert set(plan.removed_layers) == {unit.index for unit in dropped if unit.kind == "layer"} | replaced
    inherited = {edit.start for edit in edits if isinstance(edit, Replace)}
    assert set(plan.absent_layers) == set(plan.removed_layers) - inherited == set(absent_layers(plan.structure, N))
    assert sorted([*plan.kept_layers, *plan.removed_layers]) == list(range(N))
    assert len(stored(plan.structure)) == plan.n_layers_after == N - len(plan.absent_layers)


@given(edit_lists(insert=True, merge=True, prune=True))
def test_a_plan_is_the_same_after_its_file(edits):
    plan = plan_of_edits(edits)
    again = Plan.from_json(plan.to_json())
    assert again == plan and again.structure == plan.structure and str(again) == str(plan)


@given(edit_lists())
def test_the_picture_has_a_box_for_every_layer_and_says_what_the_structure_says(edits):
    plan = plan_of_edits(edits)
    looks = [fate.look.split()[0] for fate in fates(plan)]
    off = {unit.index for unit in units_off(plan.structure)}
    refitted = {edit.layer for edit in edits if isinstance(edit, Refit)}
    for layer, look in enumerate(looks):
        assert (look == "gone") == (layer in plan.removed_layers)
        assert (look == "part") == (layer in off)
        assert (look == "refitted") == (layer in refitted - off)


@given(edit_lists(prune=True))
def test_edits_that_only_write_values_change_no_structure_and_no_choice(edits):
    without = tuple(edit for edit in edits if not edit.writes())
    assert structure_of(edits, N) == structure_of(without, N)
    assert choice_hash(edits) == choice_hash(without)


def test_no_edit_is_the_identity():
    assert structure_of((), N) == intact(N)
    assert kept_layers(intact(N)) == tuple(range(N))


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ((Drop(indices=(2,)), Drop(indices=(2,))), "edited twice"),
        ((Drop(indices=(2,)), Drop(kind="attn", indices=(2,))), "edited twice"),
        ((Drop(kind="mlp", indices=(3,)), Replace(start=2, stop=4, replacement="layer")), "edited twice"),
        ((Drop(indices=(2,)), Refit(layer=2, parameters=(MAP,))), "removed, and there are new values"),
        ((Drop(indices=(N,)),), f"not in 0..{N - 1}"),
        ((Refit(layer=-1, parameters=(MAP,)),), f"not in 0..{N - 1}"),
        ((Replace(start=5, stop=19_000, replacement="layer"),), f"not in 0..{N - 1}"),
        ((Drop(indices=tuple(range(N))),), "keep at least one"),
    ],
)
def test_edits_that_do_not_go_together_are_refused(edits, said):
    with pytest.raises(ValueError, match=said):
        plan_of_edits(edits)


def test_values_written_twice_to_one_layer_compose_in_order():
    """A refit, then something that writes another parameter of the same layer: both are the student's."""
    view = DecoderView(tiny_model("llama", n_layers=N))
    edits = (Drop(indices=(4,)), Refit(layer=3, parameters=(MAP,)), Refit(layer=3, parameters=("mlp.up_proj.weight",)))
    with view.residency.layer(3) as layer:
        state = {name: value.detach() for name, value in layer.named_parameters()}
    values = {f"refit.3.{name}": 2 * state[name] for name in (MAP, "mlp.up_proj.weight")}
    student = student_of(view, plan_of_edits(edits), values)
    assert {name: bool((value == 2 * state[name]).all()) for name, value in student.overrides[3].items()} == {
        MAP: True,
        "mlp.up_proj.weight": True,
    }


def test_a_value_of_a_refitted_layer_that_no_edit_names_is_refused():
    view = DecoderView(tiny_model("llama", n_layers=N))
    edits = (Drop(indices=(4,)), Refit(layer=3, parameters=(MAP,)))
    with view.residency.layer(3) as layer:
        values = {f"refit.3.{name}": value.detach() for name, value in layer.named_parameters() if name.startswith("mlp.")}
    with pytest.raises(ValueError, match="belong to no edit"):
        student_of(view, plan_of_edits(edits), values)


def values_for(view, plan, seed):
    """Random values by the names that a plan's file has: of refits and zeros, of predicted layers, of every other replacement.

    What follows from the source is left out, and a replacement without values is one that nothing has trained yet.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(like):
        value = 0.05 * torch.randn(like.shape, generator=generator)
        return value + 1 if value.ndim == 1 else value  # The weight of a norm is near 1.

    found = {}
    for edit in plan.edits:
        if isinstance(edit, (Refit, Prune)):
            with view.residency.layer(edit.layer) as module:
                state = dict(module.named_parameters())
            found.update({key: drawn(state[name]) for name, key in edit.written()[edit.layer].items()})
        elif isinstance(edit, Insert) and edit.start.weights == "predicted":
            for number, like in enumerate(edit.of):
                with view.residency.layer(like) as module:
                    state = module.state_dict()
                found.update({f"{edit.prefix_of(number)}{name}": drawn(value) for name, value in state.items()})
        elif isinstance(edit, Replace) and seed % 2:
            found.update({name: drawn(value) for name, value in values_of([new_attached(view, edit)]).items()})
    for edit in plan.edits:
        if isinstance(edit, Prune):
            for key in edit.written()[edit.layer].values():
                found[key] = found[key] * (torch.rand(found[key].shape, generator=generator) < 0.5)
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = tiny_model("llama", n_layers=N)
    folder = tmp_path_factory.mktemp("source") / "m"
    model.save_pretrained(folder)
    return model, folder


@settings(deadline=None, max_examples=25)
@given(edits=edit_lists(replace=True, insert=True, merge=True, prune=True), seed=st.integers(0, 9))
def test_the_written_file_is_the_student(saved, tmp_path_factory, edits, seed):
    """Sizes, order, config, layer count and logits of the checkpoint are those of structure and overlay."""
    from transformers import AutoModelForCausalLM

    model, folder = saved
    view, plan = DecoderView(model), plan_of_edits(edits)
    values = with_derived(view, plan, values_for(view, plan, seed))
    out = tmp_path_factory.mktemp("out") / "student"
    rewrite(folder, plan, out, values=values)
    config = json.loads((out / "config.json").read_text())
    assert config["num_hidden_layers"] == plan.n_layers_after
    with safe_open(out / "model.safetensors", "pt") as file:
        n_written = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    size = model_size(view)
    kept = sum(size.layers[slot.like] for slot in stored(plan.structure))
    assert n_written == size.total - sum(size.layers) + kept
    again = AutoModelForCausalLM.from_pretrained(out).eval()
    ids_BT = torch.arange(12).remainder(30).view(2, 6) + 1
    expected = view.logits(Batch(ids_BT), student=student_of(view, plan, values))
    with torch.no_grad():
        torch.testing.assert_close(again(ids_BT).logits, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_sublayers_and_layers_together_are_refused_or_exact_in_every_family(family, tmp_path):
    """Where a family can write the mixed plan at all, the file has the structure's layers; else it says why."""
    model = tiny_model(family, n_layers=4)
    model.save_pretrained(tmp_path / "m")
    plan = plan_of_edits((Drop(indices=(1,)), Drop(kind="attn", indices=(2,))), n_layers=4)
    try:
        rewrite(tmp_path / "m", plan, tmp_path / "s")
    except ValueError as reason:
        assert len(str(reason)) > 20
        assert not (tmp_path / "s").exists()
        return
    text = json.loads((tmp_path / "s" / "config.json").read_text())
    counts = {text.get(name) for name in ("num_hidden_layers", "n_layer", "num_layers", "n_layers")}
    assert 3 in counts or 3 in {text.get("text_config", {}).get("num_hidden_layers")}
    assert Unit("attn", 2) in units_off(plan.structure)
