"""Thinning a model: masks equal those of an independent pass over the whole model, in every family; the plan records them."""

from dataclasses import replace

import pytest
import torch
from families import FAMILIES, VOCAB, tiny_model

from shoal.edits.plan import Plan
from shoal.edits.prune import Prune
from shoal.edits.refit import Refit
from shoal.edits.student_of import student_of
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.prune.amount import SparsePattern
from shoal.prune.maps import maps_of
from shoal.prune.prune_config import PruneConfig
from shoal.prune.table import PRUNERS
from shoal.prune.thin import evidence_of, outlier_shares, thin, thin_site
from shoal.text.samples import Samples
from shoal.words.structure import Size
from shoal.words.types import Unit

LENGTH, N_LAYERS = 10, 3


def batches(n=12, *, padded=True, size=5):
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, LENGTH + 1, (n,), generator=draw) if padded else torch.full((n,), LENGTH)
    return Samples(torch.randint(3, VOCAB, (n, LENGTH), generator=draw), lengths, "training", "ids", "hash", 0).batches(size)


def thinned(view, student, text, name, amount):
    site = thin_site(view, student, text)
    amounts = {(layer, one.name): amount for layer, maps in site.maps.items() for one in maps}
    return {one.layer: one for one in thin(site, PRUNERS[name], amounts)}


def lacking(*layers):
    return Student(removed=frozenset(Unit("layer", layer) for layer in layers))


def naive_wanda(view, text, amount):
    """Masks of all linear modules, front to back, each from runs of the model itself with the masks before it in place."""
    model, kept, real = view.model, {}, []
    layers = model.get_submodule(view.layers_path)
    for index, layer in enumerate(layers):
        squares, hooks = {}, []
        for path, module in layer.named_modules():
            if isinstance(module, torch.nn.Linear):

                def look(module, args, path=path, squares=squares):
                    x = args[0].reshape(-1, args[0].shape[-1])[real[-1]].double()
                    squares[path] = squares.get(path, 0) + x.square().sum(0)

                hooks.append(module.register_forward_pre_hook(look))
        for batch in text:
            mask = None if batch.mask_BT is None else batch.mask_BT.long()
            real.append(torch.ones(batch.ids_BT.numel()).bool() if mask is None else mask.bool().flatten())
            with torch.no_grad():
                model(input_ids=batch.ids_BT, attention_mask=mask, use_cache=False)
        for hook in hooks:
            hook.remove()
        for path, squares_F in squares.items():
            weight = layer.get_submodule(path).weight.data
            score = weight.abs() * squares_F.sqrt()
            n = int(weight.shape[1] * amount)
            weight.scatter_(1, score.argsort(dim=1, stable=True)[:, :n], 0.0)
            kept[index, path] = weight != 0
    return kept


@pytest.mark.parametrize("family", ["llama", "gemma2", "falcon", "phi3"])
def test_wanda_takes_the_masks_of_the_model_run_by_itself(family):
    """Statistics of the already pruned prefix, padding left out: no weight of the masks differs."""
    text = batches()
    view = DecoderView(tiny_model(family, n_layers=N_LAYERS))
    found = thinned(view, Student(), text, "wanda", 0.5)
    naive = naive_wanda(DecoderView(tiny_model(family, n_layers=N_LAYERS)), text, 0.5)
    assert len(naive) == sum(len(one.values) for one in found.values())
    assert sum(int(((found[i].values[f"{path}.weight"] != 0) != kept).sum()) for (i, path), kept in naive.items()) == 0


@pytest.mark.parametrize(
    "family, name",
    [(family, "sparsegpt") for family in FAMILIES] + [(family, name) for family in ("gpt2", "gpt_oss") for name in PRUNERS],
)
def test_every_family_gets_half_of_its_zeros(family, name):
    """Experts and transposed weights too; the first layer is cut out, sublayers stay whole."""
    view = DecoderView(tiny_model(family, n_layers=N_LAYERS))
    found = thinned(view, lacking(0), batches(8, size=4), name, 0.5)
    assert sorted(found) == [1, 2]
    for one in found.values():
        assert all(fact.n_zeros == pytest.approx(fact.n_weights / 2, rel=0.03) for fact in one.maps)
        assert all(bool(torch.isfinite(value).all()) for value in one.values.values())
    linear = {
        name for name, parameter in view.model.get_submodule(f"{view.layers_path}.2").named_parameters() if parameter.ndim > 1
    }
    left = linear - set(found[2].values)
    assert all(any(word in name for word in ("gate.weight", "router")) or "bias" in name for name in left), (
        "routers alone stay whole"
    )


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_experts_are_thinned_on_the_tokens_that_reach_them(family):
    """The norms are those of a naive replay: every token, its experts, their hidden activations."""
    text = batches()
    view = DecoderView(tiny_model(family, n_layers=2))
    site = thin_site(view, Student(), text)
    layer = view.model.get_submodule(f"{view.layers_path}.1")
    path, experts = next((path, module) for path, module in layer.named_modules() if "Experts" in type(module).__name__)
    rows = []
    hook = experts.register_forward_pre_hook(lambda module, args: rows.append(args[:2]))
    naive = {}
    for batch in text:
        rows.clear()
        mask = None if batch.mask_BT is None else batch.mask_BT.long()
        with torch.no_grad():
            view.model(input_ids=batch.ids_BT, attention_mask=mask, use_cache=False)
        states, index = rows[-1]
        real = torch.ones(len(states)).bool() if mask is None else mask.bool().flatten()
        for token in real.nonzero().flatten().tolist():
            for expert in index[token].tolist():
                x = states[token]
                up = experts.gate_up_proj[expert].detach()
                gate_up = x @ up if experts.is_transposed else up @ x
                if experts.has_bias:
                    gate_up = gate_up + experts.gate_up_proj_bias[expert].detach()
                hidden = experts._apply_gate(gate_up[None])[0]
                for role, value in (("gate_up_proj", x), ("down_proj", hidden)):
                    key = f"{path}.{role}[{expert}]"
                    naive[key] = naive.get(key, 0) + value.detach().double().square()
    hook.remove()
    from shoal.fit.sites.of_layer import probe_of
    from shoal.prune.watch import sums_of

    for here in site.walk(None):
        if here.layer == 1:
            found = {}
            for group in sums_of(here, site.maps[1], probe_of(view, text), moments=False, workers=site.workers):
                found.update(group)
    for key, squares_F in naive.items():
        torch.testing.assert_close(found[key].squares_F, squares_F, rtol=1e-4, atol=1e-6)
    dead = [one for name, one in found.items() if "experts" in name and name not in naive]
    assert all(one.saw_nothing for one in dead)


def test_outlier_shares_are_counted_in_the_dense_model_over_all_maps_of_a_layer():
    text, view = batches(), DecoderView(tiny_model("llama", n_layers=N_LAYERS))
    found = dict(outlier_shares(thin_site(view, Student(), text), 3.0))
    for index in range(N_LAYERS):
        layer, scores = view.model.get_submodule(f"{view.layers_path}.{index}"), []
        inputs = {}
        hooks = [
            module.register_forward_pre_hook(lambda _, args, path=path, seen=inputs: seen.setdefault(path, []).append(args[0]))
            for path, module in layer.named_modules()
            if isinstance(module, torch.nn.Linear)
        ]
        real = []
        for batch in text:
            mask = batch.mask_BT.long()
            real.append(mask.bool().flatten())
            with torch.no_grad():
                view.model(input_ids=batch.ids_BT, attention_mask=mask, use_cache=False)
        for hook in hooks:
            hook.remove()
        for path, seen in inputs.items():
            x = torch.cat([h.reshape(-1, h.shape[-1])[r] for h, r in zip(seen, real, strict=True)])
            scores.append((layer.get_submodule(path).weight.abs() * x.norm(dim=0)).flatten())
        joined = torch.cat(scores)
        assert found[index] == pytest.approx(float((joined > 3.0 * joined.mean()).double().mean()), abs=2 / len(joined))


def test_a_layer_that_is_known_is_taken_and_the_rest_is_the_same():
    text, view = batches(), DecoderView(tiny_model("llama", n_layers=N_LAYERS))
    site = thin_site(view, Student(), text)
    amounts = {(layer, one.name): 0.5 for layer, maps in site.maps.items() for one in maps}
    whole = list(thin(site, PRUNERS["sparsegpt"], amounts))
    again = list(thin(site, PRUNERS["sparsegpt"], amounts, known=lambda layer: whole[layer] if layer < 2 else None))
    for one, other in zip(whole, again, strict=True):
        assert one.maps == other.maps
        assert all(torch.equal(one.values[name], other.values[name]) for name in one.values)


def test_maps_without_whole_groups_are_left_and_named():
    """32 inputs of the others, 48 of the last: only these have groups of 24."""
    view = DecoderView(tiny_model("llama", n_layers=1))
    site = thin_site(view, Student(), batches(), pattern=SparsePattern(12, 24))
    assert [one.role for one in site.maps[0]] == ["mlp.down_proj"]
    assert any("32 inputs, no whole groups of 24" in reason for reason in site.left)
    with pytest.raises(ValueError, match="can be thinned"):
        thin_site(view, Student(), batches(), pattern=SparsePattern(3, 7))


def test_maps_of_sublayers_that_are_off_are_no_weights_to_thin():
    """They are gone already: a share of the whole model is reached, and outliers of a layer are those of what it runs."""
    view = DecoderView(tiny_model("llama", n_layers=N_LAYERS))
    off = Student(removed=frozenset({Unit("attn", 1), Unit("mlp", 2)}))
    site, every = (thin_site(view, one, batches()) for one in (off, Student()))
    shapes, whole = (evidence_of(one).sizes for one in (site, every))
    gone = {(layer, name) for layer, name in whole if (layer, name.split(".")[0]) in ((1, "self_attn"), (2, "mlp"))}
    assert len(gone) == 7 and whole.keys() - shapes.keys() == gone
    assert [reason.split(":")[0] for reason in site.left] == ["attn of layers 1", "mlp of layers 2"]
    before = sum(p.numel() for p in view.model.parameters())
    n_gone = sum(whole[one] for one in gone)
    share = PruneConfig(sparsity="60%all").share(of_maps=sum(shapes.values()), parameters=before - n_gone, before=before)
    done = thin(site, PRUNERS["magnitude"], dict.fromkeys(shapes, share))
    zeros = sum(int((value == 0).sum()) for one in done for value in one.values.values())
    assert (n_gone + zeros) / before == pytest.approx(0.6, abs=0.005)  # A whole number of zeros in each row.
    only = replace(every, student=off, maps={2: [one for one in every.maps[2] if one.module.startswith("self_attn")]})
    assert dict(outlier_shares(site, 3.0))[2] == dict(outlier_shares(only, 3.0))[2]


def test_quantised_weights_are_refused():
    layer = tiny_model("llama", n_layers=1).model.layers[0]
    layer.mlp.down_proj.weight = torch.nn.Parameter(layer.mlp.down_proj.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="quantised"):
        maps_of(layer)


# -- the edit ------------------------------------------------------------------------------------------------------------


def plan_of(view, edits):
    size = Size(layers=view.n_layers, parameters=1)
    return Plan(source="x", source_hash="y", teacher="x", n_layers=view.n_layers, edits=edits, before=size, after=size)


def test_zeros_come_after_a_refit_and_their_mask_is_in_the_values():
    """The later value of one parameter holds; evidence of a refitted student is of the refit."""
    view = DecoderView(tiny_model("llama", n_layers=2))
    name = "mlp.down_proj.weight"
    with view.residency.layer(1) as module:
        doubled = 2 * dict(module.named_parameters())[name].detach()
    values = {f"refit.1.{name}": doubled}
    refitted = student_of(view, plan_of(view, (Refit(layer=1, parameters=(name,)),)), values)
    found = thinned(view, refitted, batches(), "wanda", 0.5)[1]
    kept = found.values[name] != 0
    assert torch.equal(found.values[name][kept], doubled[kept])
    edits = (Refit(layer=1, parameters=(name,)), Prune(layer=1, parameters=tuple(found.values), method="wanda"))
    student = student_of(view, plan_of(view, edits), values | {f"prune.1.{key}": value for key, value in found.values.items()})
    assert torch.equal(student.overrides[1][name] != 0, kept)
    weights = dict(evidence_of(thin_site(view, student, batches())).weights())
    assert torch.equal(weights[1, "mlp.down_proj"], found.values[name])
