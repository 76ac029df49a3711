"""The update of a step is AdamW as written down: clipped gradient, decay of matrices only, the configured betas and rates."""

import itertools

import pytest
import torch
from families import VOCAB, tiny_model

from shoal.edits.replace.layer import LayerReplacement
from shoal.edits.student_of import attach
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.text.samples import Samples
from shoal.train.config import TrainConfig
from shoal.train.course import plan_courses
from shoal.train.joint import Trainees, accumulate
from shoal.train.loop import train_starts
from shoal.train.objectives import weighted_sum
from shoal.train.parts import Start
from shoal.train.schedule import learning_rate
from shoal.words.types import Span

MSE = weighted_sum("hidden_mse")
CONFIG = TrainConfig(
    lr=1e-2, min_lr=1e-3, warmup=0.25, weight_decay=0.5, betas=(0.7, 0.8), clip=1e-3, batch=4, micro_batch=4, eval_every=1
)


def start(view):
    kind, span = LayerReplacement(), Span(2, 4)
    return Start(Student(attached=(attach(kind, span, kind.build(view, span)),)))


def samples(n):
    ids = torch.randint(3, VOCAB, (n, 9), generator=torch.Generator().manual_seed(n))
    return Samples(ids, torch.full((n,), 9), "training", "planted", f"hash-{n}", 0)


def naive_training(view, training, config, *, clips=True, decays=True):
    """The formulas of AdamW (Loshchilov and Hutter 2019, algorithm 2) on the gradients of the loop."""
    trainees = Trainees(view, [start(view)], MSE)
    master = dict(trainees.members[0].masters["2"].named_parameters())
    first = {name: torch.zeros_like(p) for name, p in master.items()}
    second = {name: torch.zeros_like(p) for name, p in master.items()}
    (course,), (b1, b2) = plan_courses(training, config), config.betas
    for step in range(course.n_steps):
        trainees.zero_grad()
        accumulate(trainees, course.step(step), MSE)
        norm = torch.cat([p.grad.flatten() for p in master.values()]).norm()
        assert norm > config.clip
        scale = config.clip / norm if clips else 1.0
        lr = learning_rate(step, n_steps=course.n_steps, lr=config.lr, min_lr=config.min_lr, warmup=config.warmup)
        with torch.no_grad():
            for name, p in master.items():
                first[name] = b1 * first[name] + (1 - b1) * scale * p.grad
                second[name] = b2 * second[name] + (1 - b2) * (scale * p.grad).square()
                m, v = first[name] / (1 - b1 ** (step + 1)), second[name] / (1 - b2 ** (step + 1))
                decay = config.weight_decay if decays and p.ndim == 2 else 0.0
                p.copy_(p * (1 - lr * decay) - lr * m / (v.sqrt() + 1e-8))
    return {name: p.detach() for name, p in master.items()}


def test_training_equals_the_formulas():
    view, training = DecoderView(tiny_model("llama")), samples(16)
    falling = itertools.count(0, -1)  # With this the last step is the best.
    (trained,) = train_starts(
        view,
        [start(view)],
        training=training,
        selection=samples(4),
        config=CONFIG,
        quality=lambda student: float(next(falling)),
    )
    assert trained.result.best_step == trained.result.n_steps == 4
    values = dict(trained.student.attached[0].module.named_parameters())
    expected = naive_training(view, training, CONFIG)
    assert {p.ndim for p in values.values()} == {1, 2}
    for name, value in expected.items():
        # The first steps of Adam divide a rounded gradient by its own size: elements near zero move by up to lr x 1e-3.
        torch.testing.assert_close(values[name], value, rtol=1e-5, atol=1e-5, msg=name)
    for other in (naive_training(view, training, CONFIG, clips=False), naive_training(view, training, CONFIG, decays=False)):
        assert any(not torch.allclose(values[name], value, rtol=1e-5, atol=1e-5) for name, value in other.items())


@pytest.mark.parametrize(("bfloat16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_multiplies_in_bfloat16_and_sums_the_loss_in_fp32(bfloat16, dtype):
    view = DecoderView(tiny_model("llama"))
    trainees = Trainees(view, [start(view)], MSE, bfloat16=bfloat16)
    seen = []
    trainees.members[0].masters["2"].layer.mlp.down_proj.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    loss = trainees(samples(4).batches(4)[0])
    loss.sum().backward()
    assert seen == [dtype]
    assert loss.dtype == torch.float32
    assert {p.grad.dtype for p in trainees.parameters()} == {torch.float32}
