"""A plan with several replacements is trained front to back, and its values rebuild the student."""

import pytest
import torch
from families import VOCAB, tiny_model

from shoal.edits.drop import Drop
from shoal.edits.plan import Plan
from shoal.edits.replace.replace_edit import Replace
from shoal.edits.student_of import student_of
from shoal.engine.view import DecoderView
from shoal.text.samples import Samples
from shoal.train.config import TrainConfig
from shoal.train.train_plan import train_plan
from shoal.words.structure import Size

SIZE = Size(layers=8, parameters=1)


def plan_of(*edits):
    return Plan(source="tiny", source_hash="0", teacher="tiny", n_layers=8, edits=edits, before=SIZE, after=SIZE)


def samples(n, seed):
    ids = torch.randint(3, VOCAB, (n, 9), generator=torch.Generator().manual_seed(seed))
    return Samples(ids, torch.full((n,), 9), "training", "planted", str(seed), seed)


TEXT = dict(training=samples(48, 1), selection=samples(8, 2))
CONFIG = TrainConfig(several="sequential", lr=5e-3, min_lr=5e-3, warmup=0.0, batch=8, micro_batch=8, eval_every=6)
TWO = plan_of(Drop(indices=(6,)), Replace(start=1, stop=3, replacement="layer"), Replace(start=4, stop=6, replacement="layer"))


@pytest.fixture
def view():
    return DecoderView(tiny_model("llama", n_layers=8))


def test_the_second_cut_is_measured_after_the_trained_first(view):
    trained = train_plan(view, TWO, config=CONFIG, **TEXT)
    assert [result.span.start for result in trained.results] == [1, 4]
    assert all(result.best.validation < result.first.validation for result in trained.results)
    batch = TEXT["selection"].batches(8)[0]
    reading = view.read(batch)
    first_only = {name: value for name, value in trained.values.items() if name.startswith("replace.1-3.")}
    untrained_second = student_of(view, TWO, first_only)
    with torch.no_grad():
        target = dict(view.stream(reading))[7]  # Layer 6 is gone.
        for student, point in ((untrained_second, trained.results[1].first), (trained.student, trained.results[1].best)):
            h = dict(view.stream(reading, student=student))[6]
            assert point.validation == pytest.approx(float((h - target).square().mean()), rel=1e-6)


def test_values_rebuild_the_student(view):
    trained = train_plan(view, TWO, config=CONFIG, **TEXT)
    batch = TEXT["selection"].batches(8)[0]
    expected = view.logits(batch, student=trained.student)
    assert torch.equal(view.logits(batch, student=student_of(view, TWO, trained.values)), expected)
    assert not torch.equal(view.logits(batch, student=student_of(view, TWO)), expected)


def test_quality_sees_the_whole_student(view):
    seen = []

    def quality(student):
        seen.append((sorted(str(unit) for unit in student.removed), [str(a.span) for a in student.attached]))
        return 1.0

    train_plan(view, TWO, config=CONFIG, quality=quality, **TEXT)
    assert all(removed == ["layer.6"] and len(spans) == 2 for removed, spans in seen)


def test_killed_in_the_second_replacement_it_goes_on_there(view, tmp_path):
    unbroken = train_plan(view, TWO, config=CONFIG, **TEXT)
    calls = []

    def stop(step, n_steps, loss):
        calls.append(step)
        if len(calls) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_plan(view, TWO, config=CONFIG, folder=tmp_path, progress=stop, **TEXT)
    steps = []
    resumed = train_plan(view, TWO, config=CONFIG, folder=tmp_path, progress=lambda step, *_: steps.append(step), **TEXT)
    assert steps == [4, 5, 6]
    assert unbroken.values.keys() == resumed.values.keys()
    assert all(torch.equal(unbroken.values[name], resumed.values[name]) for name in unbroken.values)


def test_a_plan_without_replacements_is_refused(view):
    with pytest.raises(ValueError, match="replaces no span, merges and refits no layer"):
        train_plan(view, plan_of(Drop(indices=(6,))), config=CONFIG, **TEXT)
