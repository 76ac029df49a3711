"""The engine runs every family bit for bit as its own forward does, and any part of it left out equals a zeroed reference."""

import copy

import pytest
import torch
from families import FAMILIES, VOCAB, tiny_model

from shoal.engine.families import sublayer
from shoal.engine.passes import run_pass
from shoal.engine.student import TEACHER, Attached, Student
from shoal.engine.view import DecoderView, Tap
from shoal.words.types import Batch, Span, Unit

IDS_BT = torch.randint(3, VOCAB, (3, 11), generator=torch.Generator().manual_seed(0))
PLAIN = Batch(IDS_BT)
MASK_BT = torch.arange(11)[None] < torch.tensor([7, 11, 3])[:, None]
PADDED = Batch(IDS_BT.where(MASK_BT, 0), MASK_BT)
LEFT = Batch(IDS_BT.flip(1).where(MASK_BT.flip(1), 0), MASK_BT.flip(1))
BATCHES = {"plain": PLAIN, "right-padded": PADDED, "left-padded": LEFT}


@pytest.fixture(params=sorted(FAMILIES), scope="module")
def model(request):
    return tiny_model(request.param)


def own_logits(model, batch):
    mask = None if batch.mask_BT is None else batch.mask_BT.long()
    with torch.no_grad():
        return model(input_ids=batch.ids_BT, attention_mask=mask, use_cache=False).logits


@pytest.mark.in_turn(3)
@pytest.mark.parametrize("kind", BATCHES)
def test_replay_is_bitwise_the_models_own_forward(model, kind):
    view, batch = DecoderView(model), BATCHES[kind]
    expected = own_logits(model, batch)
    assert torch.equal(view.logits(batch), expected)
    assert torch.equal(view.logits(batch), expected), "with cached layer arguments"
    assert torch.equal(own_logits(model, batch), expected), "the view left the model as it was"


def test_cached_arguments_serve_other_text_of_the_same_shape(model):
    view = DecoderView(model)
    view.logits(PLAIN)
    other = Batch(IDS_BT.flip(0))
    assert torch.equal(view.logits(other), own_logits(model, other))


def test_cached_arguments_serve_no_other_padding(model):
    view = DecoderView(model)
    for batch in (PADDED, LEFT, PADDED):
        assert torch.equal(view.logits(batch), own_logits(model, batch))


@torch.no_grad()
def zero_sublayer(layer, kind):
    """Independent reference: zero every weight that writes into the stream, by name of the stored tensors."""
    if kind == "layer":
        zero_sublayer(layer, "attn"), zero_sublayer(layer, "mlp")
        return
    found = sublayer(layer, kind)
    place = layer if found is None else found[1]
    ends = ("o_proj", "out_proj", "dense", "c_proj") if kind == "attn" else (
        "down_proj", "c_proj", "fc2", "fc_out", "dense_4h_to_h", "w2")  # fmt: skip
    hits = 0
    for path, parameter in place.named_parameters():
        parts = path.split(".")
        if any(part in ends or part in (f"{e}_bias" for e in ends) for part in parts):
            parameter.zero_()
            hits += 1
    assert hits, f"the reference found nothing to zero in {[n for n, _ in place.named_parameters()]}"


@pytest.mark.in_turn(3)
@pytest.mark.parametrize("kind", ["layer", "attn", "mlp"])
@pytest.mark.parametrize("batch_kind", ["plain", "right-padded"])
def test_a_removed_unit_equals_zero_contribution(model, kind, batch_kind):
    batch = BATCHES[batch_kind]
    reference = copy.deepcopy(model)
    view = DecoderView(reference)
    for index in (1, 3):
        zero_sublayer(reference.get_submodule(view.layers_path)[index], kind)
    removed = Student(frozenset(Unit(kind, index) for index in (1, 3)))
    got, expected = DecoderView(model).logits(batch, student=removed), own_logits(reference, batch)
    real = slice(None) if batch.mask_BT is None else batch.mask_BT
    assert torch.equal(got[real], expected[real])
    assert not torch.equal(got, own_logits(model, batch)), "removing it must change something"


def test_overrides_equal_edited_weights(model):
    edited = copy.deepcopy(model)
    view = DecoderView(model)
    layer = edited.get_submodule(view.layers_path)[2]
    with torch.no_grad():
        values = {name: p.mul_(1.25).clone() for name, p in layer.named_parameters()}
    assert torch.equal(view.logits(PLAIN, student=Student(overrides={2: values})), own_logits(edited, PLAIN))


def test_the_first_layer_as_a_replacement_equals_removing_the_rest_of_the_span(model):
    view = DecoderView(model)
    with view.residency.layer(2) as layer:
        replaced = Student(attached=(Attached(Span(2, 5), layer, args_from=2),))
    removed = Student(frozenset({Unit("layer", 3), Unit("layer", 4)}))
    assert torch.equal(view.logits(PADDED, student=replaced), view.logits(PADDED, student=removed))


def test_students_of_one_pass_equal_students_alone(model):
    view = DecoderView(model)
    students = [
        TEACHER,
        Student(frozenset({Unit("layer", 4)})),
        Student(frozenset({Unit("layer", 2), Unit("layer", 4)})),
        Student(frozenset({Unit("attn", 2), Unit("layer", 4)})),
    ]
    seen = []
    run_pass(view, [PADDED], students=students, sink=lambda reading, finals: seen.extend(view.head(h, reading) for h in finals))
    for student, logits in zip(students, seen, strict=True):
        assert torch.equal(logits, view.logits(PADDED, student=student))


def test_students_share_their_common_prefix():
    view = DecoderView(tiny_model("llama"))
    view.read(PLAIN)  # Layer arguments are cached from here on; a further reading touches layer 0 only.
    calls = []
    for index, layer in enumerate(view.model.model.layers):
        layer.register_forward_pre_hook(lambda *_, index=index: calls.append(index))
    students = [TEACHER, Student(frozenset({Unit("layer", 4)})), Student(frozenset({Unit("layer", 5)}))]
    run_pass(view, [PLAIN], students=students, sink=lambda *_: None)
    assert calls == [0] + [0, 1, 2, 3, 4, 5, 5]


class Keep:
    def __init__(self, taps):
        self.wanted, self.seen = taps, {}

    def taps(self, view):
        return self.wanted

    def update(self, batch, values):
        self.seen.update({tap: value.clone() for tap, value in values.items()})


def test_taps_see_what_plain_hooks_see(model):
    view = DecoderView(model)
    kinds = ["attn_in", "attn_map_in", "attn_out"]
    if view.map_names(2)["mlp"]:
        kinds += ["mlp_map_in", "mlp_out"]
    observer = Keep([Tap(kind, 2) for kind in kinds] + [Tap("boundary", i) for i in range(view.n_layers + 1)])
    run_pass(view, [PLAIN], observers=[observer], students=[Student(frozenset({Unit("attn", 2)}))], sink=lambda *_: None)
    h = view.read(PLAIN).h_BTD
    assert torch.equal(observer.seen[Tap("boundary", 0)], h)
    expected = {boundary: state for boundary, state in view.stream(view.read(PLAIN))}
    for boundary, state in expected.items():
        assert torch.equal(observer.seen[Tap("boundary", boundary)], state.detach())
    caught = {}
    layer = model.get_submodule(view.layers_path)[2]
    attention = sublayer(layer, "attn")[1]
    out = layer.get_submodule(view.map_names(2)["attn"])
    handles = [
        attention.register_forward_pre_hook(
            lambda m, a, k: caught.update(attn_in=k.get("hidden_states", a[0] if a else None)), with_kwargs=True
        ),
        out.register_forward_hook(lambda m, a, o: caught.update(attn_map_in=a[0], attn_out=o)),
    ]
    own_logits(model, PLAIN)
    for handle in handles:
        handle.remove()
    for kind in ("attn_in", "attn_map_in", "attn_out"):
        assert torch.equal(observer.seen[Tap(kind, 2)], caught[kind]), kind


def test_gradients_flow_through_a_replayed_layer(model):
    view = DecoderView(model)
    reading = view.read(PADDED)
    h = reading.h_BTD.clone().requires_grad_()
    view.head_with_grad(view.run_layer(1, h, reading), reading).square().sum().backward()
    assert torch.isfinite(h.grad).all() and h.grad.abs().sum() > 0


def test_argument_cache_is_bounded():
    view = DecoderView(tiny_model("llama", n_layers=2))
    for length in range(2, 14):
        view.read(Batch(IDS_BT[:, :length]))
    assert len(view._calls) <= view.n_cached_calls


def test_boundary_L_is_before_the_final_norm():
    model = tiny_model("llama")
    view = DecoderView(model)
    *_, (last, h) = view.stream(view.read(PLAIN))
    assert last == view.n_layers
    assert torch.equal(model.lm_head(model.model.norm(h)), own_logits(model, PLAIN))


def test_nan_states_are_refused():
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    view = DecoderView(model)
    with pytest.raises(ValueError, match="NaN or infinite"):
        run_pass(view, [PLAIN], students=[TEACHER], sink=lambda *_: None)


def test_a_family_whose_layers_read_the_text_is_refused_by_name():
    model = tiny_model("llama", n_layers=2)
    trunk = model.model
    own = trunk.rotary_emb.forward
    text = {}
    trunk.embed_tokens.register_forward_pre_hook(lambda m, a: text.update(ids=a[0]))

    def leaking(x, position_ids):
        cos, sin = own(x, position_ids)
        return cos + text["ids"][..., None] * 1e-3, sin

    trunk.rotary_emb.forward = leaking
    with pytest.raises(ValueError, match="'llama'.*position_embeddings.*outside the residual stream"):
        DecoderView(model)


@pytest.mark.parametrize("field", ["num_kv_shared_layers", "hidden_size_per_layer_input"])
def test_coupled_configs_are_refused_by_name(field):
    model = tiny_model("llama", n_layers=2)
    setattr(model.config, field, 2)
    with pytest.raises(ValueError, match=field):
        DecoderView(model)


def test_a_further_student_may_overflow_but_not_the_first():
    view = DecoderView(tiny_model("llama"))
    weight = view.model.model.layers[3].mlp.down_proj.weight
    bad = Student(overrides={3: {"mlp.down_proj.weight": torch.full_like(weight, torch.inf)}})
    seen = []
    run_pass(view, [PLAIN], students=[TEACHER, bad], sink=lambda reading, finals: seen.extend(finals))
    assert seen[0].isfinite().all() and not seen[1].isfinite().all()
    with pytest.raises(ValueError, match="NaN or infinite"):
        run_pass(view, [PLAIN], students=[bad], sink=lambda *_: None)
