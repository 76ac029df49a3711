"""A plan with values, written file to file: the tensors of the model cut in memory, and nothing the source stores is moved."""

import pytest
import torch
from families import FAMILIES, tiny_model
from safetensors.torch import load_file, save_file

from shoal.checkpoint.in_memory import cut
from shoal.checkpoint.rewrite import rewrite
from shoal.checkpoint.save import save
from shoal.edits.drop import Drop
from shoal.edits.plan import Plan
from shoal.edits.refit import Refit
from shoal.edits.replace.replace_edit import Replace
from shoal.edits.student_of import new_attached, student_of, values_of
from shoal.engine.families import output_map
from shoal.engine.open import open_model
from shoal.engine.opening import Opening
from shoal.engine.streamed import open_streamed
from shoal.engine.tensors import each_tensor, save_tensors
from shoal.engine.view import DecoderView
from shoal.words.structure import Size

SIZE = Size(layers=6, parameters=0)


def plan_of(*edits):
    return Plan(source="m", source_hash="", teacher="m", n_layers=6, edits=edits, before=SIZE, after=SIZE)


def tensors_of(folder):
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


def assert_same_tensors(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


def noisy(values):
    generator = torch.Generator().manual_seed(1)
    return {name: value + torch.randn(value.shape, generator=generator).to(value) * 0.1 for name, value in values.items()}


def edited(view):
    """A plan with a refit, a replaced span and a dropped layer, and values for it."""
    maps = [path for path in (output_map(view._stub_layers[0], kind) for kind in ("attn", "mlp")) if path]
    parameters = tuple(
        f"{path}.{name}" for path in maps for name, _ in view._stub_layers[0].get_submodule(path).named_parameters()
    )
    replaced = Replace(start=1, stop=3, replacement="layer")
    values = noisy(values_of([new_attached(view, replaced)]))
    refit = dict(view._stub_layers[0].named_parameters())
    values |= noisy({f"refit.0.{name}": refit[name].detach() for name in parameters})
    return plan_of(Refit(layer=0, parameters=parameters), replaced, Drop(indices=(4,))), values


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_file_to_file_with_values_equals_in_memory(name, tmp_path):
    tiny_model(name).save_pretrained(tmp_path / "source", max_shard_size="30KB")
    view = DecoderView(open_model(tmp_path / "source").model)
    plan, values = edited(view)
    save(cut(view, student_of(view, plan, values)), None, tmp_path / "memory")
    rewrite(tmp_path / "source", plan, tmp_path / "files", values=values)
    assert_same_tensors(tensors_of(tmp_path / "files"), tensors_of(tmp_path / "memory"))
    assert len(list((tmp_path / "files").glob("*.safetensors"))) > 3, "the shards of the source are kept"
    assert open_model(tmp_path / "files").model.config.num_hidden_layers == 4


@pytest.mark.in_turn(3)
@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "deepseek_v3"])
@pytest.mark.parametrize(("stored", "opened"), [("bfloat16", "float32"), ("float32", "bfloat16"), ("float32", "float16")])
def test_the_checkpoint_has_the_dtype_the_model_was_opened_in(name, stored, opened, tmp_path):
    model = tiny_model(name).to(getattr(torch, stored))
    save(model, None, tmp_path / "source")
    whole = DecoderView(open_model(tmp_path / "source", Opening(dtype=opened)).model)
    plan, values = edited(whole)
    save(cut(whole, student_of(whole, plan, values)), None, tmp_path / "memory")
    skeleton, _ = open_streamed(tmp_path / "source", Opening(dtype=opened))
    for kind, like in (("whole", whole.model), ("streamed", skeleton.model)):
        rewrite(tmp_path / "source", plan, tmp_path / kind, values=values, model=like)
        assert_same_tensors(tensors_of(tmp_path / kind), tensors_of(tmp_path / "memory"))
        assert open_model(tmp_path / kind).model.dtype == whole.model.dtype


def test_sublayers_are_removed_by_zero_maps(tmp_path):
    save(tiny_model("starcoder2"), None, tmp_path / "source")
    view = DecoderView(open_model(tmp_path / "source").model)
    plan = plan_of(Drop(kind="attn", indices=(1,)), Drop(kind="mlp", indices=(3,)), Drop(indices=(5,)))
    rewrite(tmp_path / "source", plan, tmp_path / "files")
    save(cut(view, student_of(view, plan)), None, tmp_path / "memory")
    assert_same_tensors(tensors_of(tmp_path / "files"), tensors_of(tmp_path / "memory"))


def test_a_stored_tensor_that_the_model_does_not_have_stays(tmp_path):
    save(tiny_model("llama"), None, tmp_path / "source")
    tensors = load_file(tmp_path / "source" / "model.safetensors")
    tensors["model.layers.1.self_attn.rotary_emb.inv_freq"] = torch.arange(4.0)
    save_file(tensors, tmp_path / "source" / "model.safetensors", metadata={"format": "pt"})
    view = DecoderView(open_model(tmp_path / "source").model)
    plan, values = edited(view)
    rewrite(tmp_path / "source", plan, tmp_path / "files", values=values, model=view.model)
    assert torch.equal(tensors_of(tmp_path / "files")["model.layers.1.self_attn.rotary_emb.inv_freq"], torch.arange(4.0))


def test_experts_of_which_only_some_are_given_are_refused(tmp_path):
    save(tiny_model("qwen3_moe"), None, tmp_path / "source")
    plan = plan_of(Refit(layer=2, parameters=("mlp.experts.gate_up_proj.nothing",)), Drop(indices=(1,)))
    with pytest.raises(ValueError, match="has no parameter"):
        rewrite(tmp_path / "source", plan, tmp_path / "out", values={"refit.2.mlp.experts.gate_up_proj.nothing": torch.ones(1)})
    assert not (tmp_path / "out").exists()


def test_names_that_cannot_be_restored_are_refused_by_name(tmp_path):
    """A checkpoint that stores a tensor in another shape than undoing the conversion gives."""
    save(tiny_model("qwen3_moe"), None, tmp_path / "source")
    view = DecoderView(open_model(tmp_path / "source").model)
    plan, values = edited(view)
    file = tmp_path / "source" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.gate_proj.weight"] = torch.cat([tensors["model.layers.1.mlp.gate_proj.weight"]] * 2)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="'model.layers.1.mlp.gate_proj.weight' would have shape"):
        rewrite(tmp_path / "source", plan, tmp_path / "out", values=values)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("refit.0.mlp.down_proj.weight"), "'refit.0.mlp.down_proj.weight' is missing"),
        (lambda v: v.pop("replace.1-3.layer.mlp.up_proj.weight"), "'mlp.up_proj.weight' is missing"),
        (lambda v: v.update({"refit.5.x": torch.ones(1)}), "'refit.5.x' belongs to no edit"),
        (lambda v: v.update({"refit.0.mlp.down_proj.weight": torch.ones(2)}), r"shape \(2,\)"),
    ],
)
def test_values_that_are_not_the_plans_are_refused(tmp_path, change, message):
    save(tiny_model("llama"), None, tmp_path / "source")
    plan, values = edited(DecoderView(open_model(tmp_path / "source").model))
    change(values)
    with pytest.raises(ValueError, match=message):
        rewrite(tmp_path / "source", plan, tmp_path / "out", values=values)
    assert not (tmp_path / "out").exists()


def test_a_replacement_that_starts_untrained_is_the_layer_it_inherits(tmp_path):
    save(tiny_model("llama"), None, tmp_path / "source")
    rewrite(tmp_path / "source", plan_of(Replace(start=1, stop=3, replacement="layer")), tmp_path / "replaced")
    rewrite(tmp_path / "source", plan_of(Drop(indices=(2,))), tmp_path / "dropped")
    assert_same_tensors(tensors_of(tmp_path / "replaced"), tensors_of(tmp_path / "dropped"))


def test_a_file_of_tensors_comes_back_and_can_be_read_by_others(tmp_path):
    tensors = {"a": torch.randn(3, 5), "b": torch.tensor(7), "c": torch.randn(4, 4).bfloat16().mT, "d": torch.zeros(0, 3)}
    save_tensors(tmp_path / "deep" / "file.safetensors", tensors, {"kind": "planted"})
    found = dict(each_tensor(tmp_path / "deep" / "file.safetensors"))
    assert found.keys() == tensors.keys()
    assert all(found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in tensors.items())
    assert (tmp_path / "deep" / "file.safetensors").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file.safetensors"]
