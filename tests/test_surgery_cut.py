"""A cut model is the overlay student bit for bit, in memory and reloaded, with and without cache; the teacher never changes."""

import copy

import pytest
import torch
from families import FAMILIES, VOCAB, tiny_model
from safetensors.torch import load_file
from torch import nn

from shoal.checkpoint.in_memory import cut
from shoal.checkpoint.save import save
from shoal.checkpoint.verify import verify
from shoal.engine.families import output_map
from shoal.engine.open import load_strictly, open_model
from shoal.engine.opening import Opening
from shoal.engine.student import Attached, Student
from shoal.engine.view import DecoderView
from shoal.words.types import Batch, Span, Unit

IDS_BT = torch.randint(3, VOCAB, (2, 11), generator=torch.Generator().manual_seed(1))
BATCH = Batch(IDS_BT)
MASK_BT = torch.arange(11)[None] < torch.tensor([7, 11])[:, None]
PADDED = Batch(IDS_BT.where(MASK_BT, 0), MASK_BT)


def without(*layers):
    return Student(frozenset(Unit("layer", layer) for layer in layers))


REMOVALS = {"a span": without(1, 2), "scattered": without(0, 3, 5), "all but one": without(0, 1, 2, 3, 4)}


@pytest.fixture(params=sorted(FAMILIES), scope="module")
def model(request):
    return tiny_model(request.param)


@torch.no_grad()
def own_logits(model, batch=BATCH):
    mask = None if batch.mask_BT is None else batch.mask_BT.long()
    return model(input_ids=batch.ids_BT, attention_mask=mask, use_cache=False).logits


def greedy(model, *, use_cache):
    length = dict(max_new_tokens=6, min_new_tokens=6, pad_token_id=0)
    return model.generate(IDS_BT, attention_mask=torch.ones_like(IDS_BT), do_sample=False, use_cache=use_cache, **length)


@pytest.mark.in_turn(3)
@pytest.mark.parametrize("removal", REMOVALS)
def test_a_cut_is_the_overlay_student(model, removal):
    view, student = DecoderView(model), REMOVALS[removal]
    before, teacher = own_logits(model), {name: value.clone() for name, value in model.state_dict().items()}
    result = cut(view, student)
    for batch in (BATCH, PADDED):
        assert torch.equal(own_logits(result, batch), view.logits(batch, student=student))
    assert torch.equal(greedy(result, use_cache=True), greedy(result, use_cache=False))
    assert torch.equal(own_logits(model), before)
    assert all(torch.equal(value, teacher[name]) for name, value in model.state_dict().items())


def test_a_cut_shares_its_weights_and_nothing_else(model):
    view = DecoderView(model)
    result = cut(view, without(1, 2))
    stored = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for p in result.parameters()} <= stored
    modules = {id(module) for module in model.modules()}
    assert not modules & {id(module) for module in result.modules()}
    assert result.config is not model.config and result.generation_config is not model.generation_config
    held = {id(value) for module in result.modules() for value in vars(module).values()}
    assert id(model.config) not in held, "no module of the cut model reads the teacher's config"


def test_every_layer_idx_is_its_place(model):
    view = DecoderView(model)
    layers = cut(view, without(0, 3)).get_submodule(view.layers_path)
    found = [
        (j, module.layer_idx) for j, layer in enumerate(layers) for module in layer.modules() if hasattr(module, "layer_idx")
    ]
    assert all(j == index for j, index in found)
    assert [m.layer_idx for m in view.model.get_submodule(view.layers_path)[4].modules() if hasattr(m, "layer_idx")] in (
        [], [4], [4, 4], [4, 4, 4]
    ), "the teacher keeps its own"  # fmt: skip


def test_saved_reloaded_and_verified(model, tmp_path):
    view, student = DecoderView(model), without(1, 2)
    save(cut(view, student), None, tmp_path / "out")
    record = verify(tmp_path / "out", ids_BT=IDS_BT, reference=lambda ids: view.logits(Batch(ids), student=student))
    assert record.logit_difference == 0.0, "the same operations on the same bits"
    assert record.size.layers == 4 and record.tokens_equal
    assert record.size.parameters == sum(p.numel() for p in cut(view, student).parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_survives_the_round_trip(tmp_path, dtype):
    save(tiny_model("qwen3"), None, tmp_path / "source")
    model = open_model(tmp_path / "source", Opening(dtype=str(dtype).removeprefix("torch."))).model
    view, student = DecoderView(model), without(1, 2)
    save(cut(view, student), None, tmp_path / "out")
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {dtype}
    record = verify(tmp_path / "out", ids_BT=IDS_BT, reference=lambda ids: view.logits(Batch(ids), student=student))
    assert record.logit_difference == 0.0 and record.dtype == str(dtype).removeprefix("torch.")


@pytest.mark.in_turn(2)
@pytest.mark.parametrize("kind", ["attn", "mlp"])
def test_a_removed_sublayer_is_a_zero_output_map_or_refused(model, kind):
    view = DecoderView(model)
    student = Student(frozenset({Unit(kind, 3), Unit("layer", 1)}))
    layer = model.get_submodule(view.layers_path)[3]
    if output_map(layer, kind) is None:
        with pytest.raises(ValueError, match=f"{view.family}.*{kind} sublayer of layer 3"):
            cut(view, student)
        return
    before = own_logits(model)
    result = cut(view, student)
    assert torch.equal(own_logits(result), view.logits(BATCH, student=student))
    assert torch.equal(own_logits(model), before), "the teacher's map is not the one that was zeroed"


def test_refitted_parameters_go_in_and_leave_the_teacher(model):
    view = DecoderView(model)
    layer = model.get_submodule(view.layers_path)[3]
    values = {name: (p * 1.25).detach() for name, p in layer.named_parameters()}
    student = Student(frozenset({Unit("layer", 1)}), overrides={3: values})
    before = own_logits(model)
    assert torch.equal(own_logits(cut(view, student)), view.logits(BATCH, student=student))
    assert torch.equal(own_logits(model), before)


class Wrapped(nn.Module):
    """A replacement that holds a stock layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *args, **kwargs):
        return self.layer(*args, **kwargs)


@pytest.mark.in_turn(2)
@pytest.mark.parametrize("args_from", [1, 3])
def test_a_replacement_that_is_a_layer_of_the_family_is_stock(model, args_from, tmp_path):
    view = DecoderView(model)
    trained = copy.deepcopy(model.get_submodule(view.layers_path)[args_from])
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.1)
    module = Wrapped(trained) if args_from == 1 else trained
    student = Student(frozenset({Unit("layer", 5)}), attached=(Attached(Span(1, 4), module, args_from=args_from),))
    result = cut(view, student)
    assert len(result.get_submodule(view.layers_path)) == 3
    assert torch.equal(own_logits(result), view.logits(BATCH, student=student))
    assert {p.data_ptr() for p in trained.parameters()} <= {p.data_ptr() for p in result.parameters()}
    save(result, None, tmp_path / "out")
    assert torch.equal(own_logits(load_strictly(tmp_path / "out")), own_logits(result))


def test_any_other_replacement_is_refused_by_name():
    view = DecoderView(tiny_model("llama"))
    student = Student(attached=(Attached(Span(1, 3), nn.Linear(32, 32), args_from=1),))
    with pytest.raises(ValueError, match="layers 1..2.*Linear.*not a LlamaDecoderLayer.*'layer'"):
        cut(view, student)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mlp.down_proj.weight": torch.zeros(3, 3)}, "refitted as \\(3, 3\\)"),
        ({"mlp.down_proj.weight": torch.zeros(32, 48, dtype=torch.float64)}, "float64"),
        ({"mlp.nothing.weight": torch.zeros(3)}, "no parameter 'mlp.nothing.weight'"),
    ],
)
def test_refits_that_do_not_fit_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        cut(DecoderView(tiny_model("llama")), Student(overrides={3: values}))


def test_layers_that_are_not_in_memory_are_refused():
    view = DecoderView(tiny_model("llama"))
    view.model.model.layers[4].to("meta")
    cut(view, without(4))
    with pytest.raises(ValueError, match="layer 4 of this llama model is not in memory"):
        cut(view, without(1))


def test_removing_nothing_is_the_teacher():
    model = tiny_model("qwen2")
    assert torch.equal(own_logits(cut(DecoderView(model), Student())), own_logits(model))


def test_a_student_without_layers_is_refused():
    with pytest.raises(ValueError, match="no layer left"):
        cut(DecoderView(tiny_model("llama", n_layers=2)), without(0, 1))


def test_the_cut_keeps_the_attention_implementation():
    model = tiny_model("llama")
    model.set_attn_implementation("eager")
    assert cut(DecoderView(model), without(1)).config._attn_implementation == "eager"


@pytest.fixture
def checkpoint(tmp_path):
    save(tiny_model("gemma3_text"), None, tmp_path / "out")
    return tmp_path / "out"


def test_verify_sees_another_student(checkpoint):
    with pytest.raises(ValueError, match="differ from the student's by"):
        verify(checkpoint, ids_BT=IDS_BT, reference=tiny_model("gemma3_text", seed=1))
    assert verify(checkpoint, ids_BT=IDS_BT, reference=tiny_model("gemma3_text")).logit_difference == 0.0


def test_verify_sees_a_student_of_another_shape(checkpoint):
    with pytest.raises(ValueError, match="not the same model"):
        verify(checkpoint, ids_BT=IDS_BT, reference=lambda ids: torch.zeros(*ids.shape, 7))


def test_verify_sees_a_broken_cache(checkpoint, monkeypatch):
    from transformers.models.gemma3.modeling_gemma3 import Gemma3Attention

    init = Gemma3Attention.__init__

    def stale(self, config, layer_idx):
        init(self, config, layer_idx)
        self.layer_idx = layer_idx // 2 * 2  # Two layers write to one place of the cache.

    monkeypatch.setattr(Gemma3Attention, "__init__", stale)
    with pytest.raises(ValueError, match="with and without cache"):
        verify(checkpoint, ids_BT=IDS_BT)


@pytest.mark.parametrize("ids", [torch.zeros(3, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long)])
def test_verify_needs_two_tokens(checkpoint, ids):
    with pytest.raises(ValueError, match="T at least 2"):
        verify(checkpoint, ids_BT=ids)
