"""Training of replacements: the gradient is the batch's, an interrupted run equals an unbroken one, the best is kept."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from families import VOCAB, every_family, tiny_model
from safetensors import SafetensorError

from shoal.edits.replace.layer import LayerReplacement
from shoal.edits.student_of import attach
from shoal.engine.student import TEACHER, Attached, Student
from shoal.engine.view import DecoderView
from shoal.text.samples import Samples
from shoal.train.config import TrainConfig
from shoal.train.joint import Trainees, accumulate
from shoal.train.loop import CHECKPOINT, train_starts
from shoal.train.objectives import n_real_tokens, weighted_sum
from shoal.train.parts import Start, Trainee
from shoal.train.progress_file import load_checkpoint
from shoal.words.types import Batch, Span, Unit

SPAN = Span(2, 4)
MSE = weighted_sum("hidden_mse")


def samples(n, *, seed, padded=False, length=9):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, length + 1, (n,), generator=g) if padded else torch.full((n,), length)
    ids = torch.randint(3, VOCAB, (n, length), generator=g) * (torch.arange(length)[None] < lengths[:, None])
    return Samples(ids, lengths, "training", "planted", f"hash-{seed}-{n}-{padded}", seed)


TRAINING, SELECTION = samples(64, seed=1), samples(8, seed=2, padded=True)
QUICK = TrainConfig(lr=1e-2, min_lr=1e-3, batch=8, micro_batch=4, eval_every=2)


def start(view, span=SPAN, student=TEACHER):
    kind = LayerReplacement()
    return Start(replace(student, attached=(attach(kind, span, kind.build(view, span)),)))


def train(view, *, starts=None, span=SPAN, config=QUICK, training=TRAINING, **kwargs):
    starts = [start(view, span)] if starts is None else starts
    return train_starts(view, starts, training=training, selection=SELECTION, config=config, **kwargs)


def state_of(trained):
    return {name: value.clone() for name, value in trained.student.attached[0].module.state_dict().items()}


def timeless(result):
    points = [point.model_copy(update={"seconds": 0.0}) for point in result.curve]
    return result.model_copy(update={"seconds": 0.0, "curve": tuple(points)})


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def view():
    return DecoderView(tiny_model("llama"))


# -- what is computed ----------------------------------------------------------------------------------------------------


def test_training_finds_a_planted_layer():
    """Layer 2 writes nothing and is else a copy of layer 3, so one layer can do exactly what the two do."""
    model = tiny_model("llama")
    layers = model.model.layers
    with torch.no_grad():
        layers[2].load_state_dict(layers[3].state_dict())
        layers[2].self_attn.o_proj.weight.zero_()
        layers[2].mlp.down_proj.weight.zero_()
    config = TrainConfig(lr=1e-2, min_lr=1e-4, warmup=0.1, weight_decay=0.0, batch=8, micro_batch=8, tokens=1024 * 9)
    (trained,) = train(DecoderView(model), config=config, training=samples(1024, seed=1))
    assert trained.result.best.validation < 0.05 * trained.result.first.validation
    assert trained.result.best_step == trained.result.n_steps == 128


@pytest.mark.parametrize("padded", [False, True])
def test_pieces_of_a_batch_give_the_gradient_of_the_whole(view, padded):
    batch = samples(8, seed=5, padded=padded)
    gradients, losses = [], []
    for size in (8, 3):
        trainees = Trainees(view, [start(view)], MSE)
        losses.append(accumulate(trainees, batch.batches(size), MSE))
        gradients.append(torch.cat([p.grad.flatten() for p in trainees.parameters()]))
    # fp32 sums in another order: relative to the gradient's size, not to single elements that are sums near zero.
    assert torch.allclose(gradients[0], gradients[1], rtol=0, atol=2e-6 * float(gradients[0].abs().max()))
    assert torch.allclose(losses[0], losses[1], rtol=1e-6)


def test_the_loss_is_the_naive_one(view):
    """Against two whole forwards with hooks: the teacher's layer 3 and a model whose layer 3 is gone."""
    batch = samples(5, seed=6, padded=True).batches(5)[0]
    ends = []
    for gone in (False, True):
        model = copy.deepcopy(view.model)
        if gone:
            model.model.layers[3].self_attn.o_proj.weight.data.zero_()
            model.model.layers[3].mlp.down_proj.weight.data.zero_()
        model.model.layers[3].register_forward_hook(lambda m, a, out: ends.append(out))
        with torch.no_grad():
            model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT.long(), use_cache=False)
    expected = (ends[0] - ends[1])[batch.mask_BT].square().mean()
    got = Trainees(view, [start(view)], MSE)(batch)
    assert float(got.detach()) == pytest.approx(float(expected), rel=1e-6)  # The mean is fp32, with another order of rows.


def test_the_trained_layer_is_causal(view):
    (trained,) = train(view)
    one = samples(2, seed=7).batches(2)[0]
    other = Batch(one.ids_BT.clone())
    other.ids_BT[:, 5:] = (other.ids_BT[:, 5:] + 7) % VOCAB
    a, b = (view.logits(batch, student=trained.student) for batch in (one, other))
    assert torch.equal(a[:, :5], b[:, :5])
    assert not torch.equal(a[:, 5:], b[:, 5:])


def test_the_teacher_does_not_change_and_keeps_no_gradient(view):
    before = {name: value.clone() for name, value in view.model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in view.model.parameters()]
    (trained,) = train(view)
    assert not same(state_of(trained), {f"layer.{k}": v for k, v in view.model.model.layers[2].state_dict().items()})
    assert same(before, view.model.state_dict())
    assert flags == [parameter.requires_grad for parameter in view.model.parameters()]
    assert all(parameter.grad is None for parameter in view.model.parameters())


def test_no_layer_after_the_span_runs(view):
    calls = []
    for index, layer in enumerate(view.model.model.layers):
        # The layer is inside, where stubs do not reach it.
        layer.mlp.register_forward_pre_hook(lambda *_, index=index: calls.append(index))
    train(view)
    assert set(calls) == {0, 1, 2, 3}
    n_batches = 16 + 5 * 2  # These are training pieces, and two validation batches at steps 0, 2, 4, 6, 8.
    assert calls.count(3) == n_batches


def test_several_starts_on_one_stream_equal_each_alone(view):
    starts = [start(view), start(view, Span(1, 4)), start(view, Span(3, 5), removed_before())]
    together = train(view, starts=starts)
    for one, trained in zip(starts, together, strict=True):
        (alone,) = train(view, starts=[one])
        assert same(state_of(alone), state_of(trained))
        assert timeless(alone.result) == timeless(trained.result)


def removed_before():
    return Student(frozenset({Unit("layer", 1)}))


def test_after_an_earlier_cut_the_input_is_the_students_and_the_target_the_teachers(view):
    batch = samples(4, seed=8).batches(4)[0]
    reading = view.read(batch)
    with torch.no_grad():
        teacher = dict(view.stream(reading))
        h = view.run_layer(3, view.run_layer(2, view.run_layer(0, reading.h_BTD, reading), reading), reading)
    got = Trainees(view, [start(view, Span(3, 5), removed_before())], MSE)(batch).detach()
    assert float(got.detach()) == pytest.approx(float((h - teacher[5]).square().mean()), rel=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", every_family())
def test_every_family_trains_from_a_bfloat16_model(name, dtype):
    view = DecoderView(tiny_model(name, n_layers=4).bfloat16())
    config = TrainConfig(lr=5e-3, min_lr=5e-3, warmup=0.0, batch=8, micro_batch=8, dtype=dtype, eval_every=8)
    (trained,) = train(view, starts=[start(view, Span(1, 3))], config=config)
    assert trained.result.best.validation < trained.result.first.validation, str(trained.result)
    assert {value.dtype for value in state_of(trained).values() if value.is_floating_point()} <= {torch.bfloat16, torch.float32}
    assert trained.student.attached[0].module.layer is not None and view.dtype == torch.bfloat16


def test_masters_are_fp32_and_the_deployed_copy_has_the_models_dtype():
    view = DecoderView(tiny_model("llama").bfloat16())
    trainee = Trainee(view, start(view), bfloat16=True)
    assert {p.dtype for p in trainee.parameters()} == {torch.float32}
    assert {p.dtype for p in trainee.deployed.attached[0].module.parameters()} == {torch.bfloat16}


# -- what is kept --------------------------------------------------------------------------------------------------------


def test_the_values_kept_are_those_of_the_best_step_and_real_copies(view):
    measures, seen = iter([5.0, 3.0, 1.0, 2.0, 1.0]), []

    def quality(student):
        seen.append({k: v.clone() for k, v in student.attached[0].module.state_dict().items()})
        return next(measures)

    (trained,) = train(view, quality=quality)
    assert trained.result.decided_by == "quality"
    assert trained.result.best_step == 4, "the first of equals"
    assert same(state_of(trained), seen[2]) and not same(seen[2], seen[4])


def test_a_training_that_only_harms_keeps_the_start(view):
    measures = iter(range(5))
    (trained,) = train(view, quality=lambda student: float(next(measures)))
    assert trained.result.best_step == 0
    batch = SELECTION.batches(8)[0]
    removed = Student(frozenset({Unit("layer", 3)}))
    assert torch.equal(view.logits(batch, student=trained.student), view.logits(batch, student=removed))


def test_step_0_of_a_bad_training_is_the_best_by_validation(view):
    config = QUICK.model_copy(update={"lr": 3.0, "min_lr": 3.0})
    (trained,) = train(view, config=config)
    assert trained.result.best_step == 0 and trained.result.best == trained.result.first


def test_the_curve_holds_what_it_says(view):
    losses = []
    (trained,) = train(view, progress=lambda step, n_steps, loss: losses.append(loss))
    result = trained.result
    assert [p.loss for p in result.curve[1:]] == pytest.approx([sum(losses[i : i + 2]) / 2 for i in (0, 2, 4, 6)], rel=1e-12)
    assert [p.step for p in result.curve] == [0, 2, 4, 6, 8] and result.n_steps == 8
    assert [p.tokens for p in result.curve] == [step * 8 * 9 for step in (0, 2, 4, 6, 8)]
    assert result.curve[0].loss is None and all(p.loss > 0 and p.grad_norm > 0 for p in result.curve[1:])
    assert result.curve[-1].lr == QUICK.min_lr
    trained_again = Student(attached=(Attached(SPAN, trained.student.attached[0].module, 2),))
    total = 0.0
    for batch in SELECTION.batches(4):
        reading = view.read(batch)
        with torch.no_grad():
            target = dict(view.stream(reading))[4]
            h = dict(view.stream(reading, student=trained_again))[4]
        total += float((h - target)[batch.mask_BT].double().square().sum()) / 32
    assert result.best.validation == pytest.approx(total / SELECTION.n_tokens, rel=1e-6)


# -- stopping and going on -----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Like a signal that nothing catches: no checkpoint is written on the way out."""


@pytest.mark.parametrize("stop_after,signal", [(3, KeyboardInterrupt), (4, KeyboardInterrupt), (5, Killed), (1, Killed)])
def test_killed_and_resumed_equals_unbroken_bit_for_bit(view, tmp_path, stop_after, signal):
    starts = [start(view), start(view, Span(1, 3))]
    unbroken = train(view, starts=starts)

    def stop(step, n_steps, loss):
        if step == stop_after:
            raise signal

    with pytest.raises(signal):
        train(view, starts=starts, folder=tmp_path, progress=stop)
    torch.randn(7)  # The global generator is in another state.
    steps = []
    resumed = train(view, starts=starts, folder=tmp_path, progress=lambda step, *_: steps.append(step))
    first = stop_after if signal is KeyboardInterrupt else stop_after - stop_after % 2
    assert steps == list(range(first + 1, 9)), "it went on, it did not begin again"
    for a, b in zip(unbroken, resumed, strict=True):
        assert same(state_of(a), state_of(b))
        assert timeless(a.result) == timeless(b.result)


def test_a_finished_training_is_read_back(view, tmp_path):
    (first,) = train(view, folder=tmp_path)
    (again,) = train(view, folder=tmp_path, progress=lambda *_: pytest.fail("nothing is left to do"))
    assert same(state_of(first), state_of(again)) and first.result == again.result
    lines = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [line["validation"] for line in lines] == [point.validation for point in first.result.curve]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.safetensors", "curve.jsonl"]


def test_an_interrupted_update_is_not_checkpointed(view, tmp_path, monkeypatch):
    unbroken = train(view)
    own, count = torch.optim.AdamW.step, []

    def torn(self, *args, **kwargs):
        own(self, *args, **kwargs)
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", torn)
    with pytest.raises(KeyboardInterrupt):
        train(view, folder=tmp_path)
    monkeypatch.undo()
    assert same(state_of(train(view, folder=tmp_path)[0]), state_of(unbroken[0]))


CHANGES = {
    "config": dict(config=QUICK.model_copy(update={"lr": 2e-2})),
    "text": dict(training=samples(64, seed=3)),
    "key": dict(key="another model"),
    "span": dict(span=Span(1, 4)),
    "measure": dict(quality=lambda student: 0.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_of_other_inputs_is_refused(view, tmp_path, change):
    train(view, folder=tmp_path)
    with pytest.raises(ValueError, match="other options, model or text"):
        train(view, folder=tmp_path, **CHANGES[change])


def test_a_checkpoint_of_another_dtype_is_refused(view, tmp_path):
    train(view, folder=tmp_path)
    with pytest.raises(ValueError, match="other options, model or text"):
        train(DecoderView(view.model.bfloat16()), folder=tmp_path)


def test_a_damaged_checkpoint_is_refused(view, tmp_path):
    train(view, folder=tmp_path)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged.*delete it"):
        train(view, folder=tmp_path)
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(path, "", members=[], optimizers=[])


def test_a_full_disk_leaves_the_last_checkpoint(view, tmp_path, monkeypatch):
    def stop(step, n_steps, loss):
        if step == 3:
            monkeypatch.setattr("shoal.engine.tensors.save_file", full)

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(ValueError, match="no space left in .* free some"):
        train(view, folder=tmp_path, progress=stop)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.safetensors", "curve.jsonl"]
    monkeypatch.undo()
    assert same(state_of(train(view, folder=tmp_path)[0]), state_of(train(view)[0]))


# -- refusals ------------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_is_refused(view):
    with pytest.raises(ValueError, match=r"step \d+ of 8 \(lr 1e\+30\); lower train.lr"):
        train(view, config=QUICK.model_copy(update={"lr": 1e30, "min_lr": 1e30}))


def test_a_model_that_is_not_finite_is_refused_before_training(view):
    with torch.no_grad():
        view.model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="step 0 of 8.*has not begun"):
        train(view)


def test_starts_that_cannot_be_are_refused(view):
    with pytest.raises(ValueError, match="at least one start"):
        train(view, starts=[])
    with pytest.raises(ValueError, match="6-layer model"):
        train(view, starts=[start(view, Span(4, 7))])
    with pytest.raises(ValueError, match="did you mean 'hidden_mse'"):
        train(view, config=QUICK.model_copy(update={"objective": "hiden_mse"}))


def test_padding_has_no_weight(view):
    padded = samples(6, seed=9, padded=True)
    spoiled = padded.ids_NT.clone()
    spoiled[torch.arange(9)[None] >= padded.lengths_N[:, None]] = VOCAB - 1
    other = Samples(spoiled, padded.lengths_N, "training", "planted", "x", 0)
    trainees = Trainees(view, [start(view)], MSE)
    a, b = (trainees.validation(s.batches(6)) for s in (padded, other))
    assert a == b
    assert n_real_tokens(padded.batches(6)[0]) == int(padded.lengths_N.sum())
    assert TEACHER.step(0) is not None
