"""Polish: what a repair set is trained, and nothing else; it starts at the repaired student and never ends below it."""

import copy

import pytest
import torch
from families import FAMILIES, VOCAB, tiny_model

from shoal.edits.drop import Drop
from shoal.edits.plan import Plan
from shoal.edits.refit import Refit
from shoal.edits.replace.replace_edit import Replace
from shoal.edits.student_of import student_of
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.fit.fit_plan import fit_plan
from shoal.fit.put_back import as_removal, put_back
from shoal.text.samples import Samples
from shoal.train.config import TrainConfig, TrainingPhase
from shoal.train.joint import Trainees, accumulate
from shoal.train.loop import train_starts
from shoal.train.objectives import OBJECTIVES, weighted_sum
from shoal.train.parts import Start, trained_parts
from shoal.train.train_plan import train_plan
from shoal.words.structure import Size
from shoal.words.types import Unit

SIZE = Size(layers=6, parameters=1)
GONE = frozenset(Unit("layer", layer) for layer in (2, 3))


def samples(n, seed, length=9):
    ids = torch.randint(3, VOCAB, (n, length), generator=torch.Generator().manual_seed(seed))
    return Samples(ids, torch.full((n,), length), "training", "planted", str(seed), seed)


TEXT = dict(training=samples(48, 1), selection=samples(8, 2))
QUICK = TrainConfig(lr=5e-3, min_lr=5e-3, warmup=0.0, batch=8, micro_batch=8, eval_every=2)


def plan_of(*edits):
    return Plan(source="tiny", source_hash="0", teacher="tiny", n_layers=6, edits=edits, before=SIZE, after=SIZE)


def refitted(view, layers=(1, 4, 5), *, seed=0):
    """A student without layers 2 and 3 whose output maps were moved a little."""
    generator, overrides = torch.Generator().manual_seed(seed), {}
    for layer in layers:
        with view.residency.layer(layer) as module:
            parameters = dict(module.named_parameters())
            names = [f"{path}.weight" for path in view.map_names(layer).values() if path is not None]
            overrides[layer] = {
                name: parameters[name].detach()
                + 0.02 * torch.randn(parameters[name].shape, generator=generator).to(parameters[name])
                for name in names
            }
    return Student(GONE, {layer: own for layer, own in overrides.items() if own})


@pytest.fixture
def view():
    return DecoderView(tiny_model("llama"))


@pytest.fixture(scope="module")
def swept():
    """A real repair, of the same model as ``view``."""
    view = DecoderView(tiny_model("llama"))
    return fit_plan(view, plan_of(Drop(indices=(2, 3))), samples(200, 3), repair="sweep", batch_size=50)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- what is trained -----------------------------------------------------------------------------------------------------


def test_parts_are_fitted_to_where_the_students_next_layer_begins(view):
    parts = trained_parts(refitted(view), 6)
    assert [(part.start, part.target, part.kind) for part in parts] == [(1, 4, "refit"), (4, 5, "refit"), (5, 6, "refit")]


@pytest.mark.parametrize("objective", ["hidden_mse", "forward_kl", "next_token"])
def test_only_what_the_repair_set_changes(view, swept, objective):
    weights = {name: value.clone() for name, value in view.model.state_dict().items()}
    before = {name: value.clone() for name, value in swept.values.items()}
    config = QUICK.model_copy(update={"objective": objective})
    done = train_plan(view, swept.plan, values=swept.values, config=config, quality=falling(), **TEXT)
    assert done.values.keys() == before.keys() and any(not torch.equal(done.values[name], before[name]) for name in before)
    assert same(swept.values, before) and same(dict(view.model.state_dict()), weights)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in view.model.parameters())
    (result,) = done.results
    assert result.n_parameters == sum(value.numel() for value in before.values())
    assert len(result.trained) == sum(isinstance(edit, Refit) for edit in swept.plan.edits)
    batch = TEXT["selection"].batches(8)[0]
    rebuilt = student_of(view, swept.plan, done.values)
    assert torch.equal(view.logits(batch, student=rebuilt), view.logits(batch, student=done.student))


PRECISIONS = [(name, torch.bfloat16) for name in sorted(FAMILIES)] + [
    ("llama", torch.float32), ("gpt2", torch.float32), ("gemma2", torch.float32), ("llama", torch.float64),
]  # fmt: skip


@pytest.mark.parametrize("name,dtype", PRECISIONS)
def test_step_0_is_the_repaired_student_bit_for_bit_and_has_a_gradient_everywhere(name, dtype):
    view = DecoderView(tiny_model(name).to(dtype))
    student = refitted(view)
    if not student.overrides:
        pytest.skip("no output map of this family is one linear map")
    objective = weighted_sum("relative_mse + forward_kl")
    trainees = Trainees(view, [Start(student)], objective)
    trainees.deploy()
    batch = TEXT["selection"].batches(8)[0]
    assert torch.equal(view.logits(batch, student=trainees.members[0].deployed), view.logits(batch, student=student))
    losses = accumulate(trainees, [batch], objective)
    assert bool(losses.isfinite().all()) and float(losses[0]) > 0
    wide = {torch.promote_types(dtype, torch.float32)}
    assert {p.dtype for p in trainees.parameters()} == wide == {p.grad.dtype for p in trainees.parameters()}
    assert all(bool(p.grad.isfinite().all()) and float(p.grad.abs().max()) > 0 for p in trainees.parameters())


def naive_gradients(view, student, batch, objective):
    """By autograd through transformers' own model with the layers taken out and the values put in."""
    teacher, model = copy.deepcopy(view.model), copy.deepcopy(view.model)
    kept, wanted = [0, 1, 4, 5], {}
    with torch.no_grad():
        for layer, own in student.overrides.items():
            for name, value in own.items():
                wanted[f"{layer}.{name}"] = parameter = model.model.layers[layer].get_parameter(name)
                parameter.copy_(value)
    ends, goals = {}, {}
    for layer in range(6):
        model.model.layers[layer].register_forward_hook(lambda m, a, out, layer=layer: ends.update({layer: out}))
        teacher.model.layers[layer].register_forward_hook(lambda m, a, out, layer=layer: goals.update({layer: out.detach()}))
    model.model.layers = torch.nn.ModuleList([model.model.layers[layer] for layer in kept])
    model.config.num_hidden_layers = 4
    ours = model(batch.ids_BT, use_cache=False).logits.log_softmax(-1)
    theirs = teacher(batch.ids_BT, use_cache=False).logits.detach().log_softmax(-1)
    if objective == "hidden_mse":  # Boundary l + 1 is the output of layer l; the target of the first part is boundary 4.
        loss = sum((ends[layer] - goals[goal]).square().mean() for layer, goal in ((1, 3), (4, 4), (5, 5))) / 3
    else:
        loss = (theirs.exp() * (theirs - ours)).sum(-1).mean()
    loss.backward()
    return {name: parameter.grad for name, parameter in wanted.items()}


@pytest.mark.parametrize("objective", ["hidden_mse", "forward_kl"])
def test_the_gradient_runs_through_everything_behind(view, objective):
    batch, student = samples(4, 5).batches(4)[0], refitted(view)
    trainees = Trainees(view, [Start(student)], weighted_sum(objective))
    accumulate(trainees, [batch], trainees.objective)
    expected = naive_gradients(view, student, batch, objective)
    found = {
        f"{layer}.{name}": parameter.grad
        for layer in student.overrides
        for name, parameter in trainees.members[0].masters[str(layer)].values().items()
    }
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        # Sums are fp32 in another order, so the error is held against the size of the gradient.
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=2e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("objective", sorted(set(OBJECTIVES) - {"next_token"}))
def test_the_exact_optimum_stays(objective):
    """Layers 2 and 3 write nothing, so the student without them is the teacher and no gradient is left."""
    model = tiny_model("llama")
    with torch.no_grad():
        for layer in (2, 3):
            model.model.layers[layer].self_attn.o_proj.weight.zero_()
            model.model.layers[layer].mlp.down_proj.weight.zero_()
    view = DecoderView(model)
    start = refitted(view)
    exact = {
        layer: {name: model.model.layers[layer].get_parameter(name).detach().clone() for name in own}
        for layer, own in start.overrides.items()
    }
    config = TrainConfig(objective=objective, lr=1e-2, weight_decay=0.0, batch=8, micro_batch=8, eval_every=3)
    if objective in ("hidden_mse", "relative_mse", "forward_kl"):  # Their slopes are 0 to the last bit.
        (done,) = train_starts(view, [Start(Student(GONE, exact))], config=config, quality=lambda s: 0.0, **TEXT)
        assert done.result.first.validation == 0.0 and done.result.curve[-1].grad_norm == 0.0
    trainees = Trainees(view, [Start(Student(GONE, exact))], weighted_sum(objective))
    accumulate(trainees, TEXT["training"].batches(8)[:1], trainees.objective)
    assert max(float(p.grad.abs().max()) for p in trainees.parameters()) < 1e-7


def test_a_polish_that_only_harms_leaves_the_repair(view, swept):
    measures = iter(range(100))
    done = train_plan(view, swept.plan, values=swept.values, config=QUICK, quality=lambda s: float(next(measures)), **TEXT)
    assert done.results[0].best_step == 0 and same(done.values, swept.values)
    of_student = {f"refit.{at}.{name}": value for at, own in done.student.overrides.items() for name, value in own.items()}
    assert same(of_student, swept.values), "the student that goes on is the one whose values are kept"


def test_polish_lowers_what_it_trains_for(view, swept):
    for objective in ("hidden_mse", "forward_kl"):
        config = TrainConfig(objective=objective, lr=5e-4, batch=4, micro_batch=4, eval_every=6)
        done = train_plan(view, swept.plan, values=swept.values, config=config, **TEXT)
        assert done.results[0].best.validation < done.results[0].first.validation


# -- several parts, several stages, several students ---------------------------------------------------------------------


@pytest.mark.parametrize("several", ["sequential", "teacher_forced"])
def test_with_one_part_the_ways_to_train_several_are_one(view, several):
    plan = plan_of(Drop(indices=(2, 3)), Refit(layer=1, parameters=("mlp.down_proj.weight",)))
    start = {"refit.1.mlp.down_proj.weight": view.model.model.layers[1].mlp.down_proj.weight.detach() * 1.1}
    ways = [QUICK.model_copy(update={"several": way}) for way in ("joint", several)]
    joint, other = (train_plan(view, plan, values=start, config=config, **TEXT) for config in ways)
    assert same(joint.values, other.values)
    assert [p.validation for p in joint.results[0].curve] == [p.validation for p in other.results[0].curve]


TWO = (Replace(start=1, stop=3, replacement="layer"), Replace(start=3, stop=5, replacement="layer"))


def test_teacher_forced_parts_are_each_trained_in_the_teacher(view):
    config = QUICK.model_copy(update={"several": "teacher_forced"})
    both = train_plan(view, plan_of(*TWO), config=config, **TEXT)
    for edit, result in zip(TWO, both.results, strict=True):
        alone = train_plan(view, plan_of(edit), config=config, **TEXT)
        assert all(torch.equal(both.values[name], value) for name, value in alone.values.items())
        assert [p.validation for p in alone.results[0].curve] == [p.validation for p in result.curve]


def test_teacher_forced_parts_that_harm_together_are_undone(view):
    def quality(student):
        trained = student.attached and not torch.equal(
            student.attached[-1].module.layer.mlp.up_proj.weight, view.model.model.layers[3].mlp.up_proj.weight
        )
        whole = len(student.attached) == 2
        return (2.0 if whole else 0.5) if trained else 1.0

    start = student_of(view, plan_of(*TWO))
    done = train_plan(
        view, plan_of(*TWO), config=QUICK.model_copy(update={"several": "teacher_forced"}), quality=quality, **TEXT
    )
    batch = TEXT["selection"].batches(8)[0]
    assert torch.equal(view.logits(batch, student=done.student), view.logits(batch, student=start))
    assert [result.best_step for result in done.results] == [0, 0]


def test_polished_students_on_one_teacher_pass_equal_each_alone(view):
    """A comparison of repairs costs one reading of the text."""
    students = [refitted(view), refitted(view, (1,), seed=1), refitted(view, (4, 5), seed=2)]
    config = QUICK.model_copy(update={"objective": "relative_mse + forward_kl"})
    together = train_starts(view, [Start(one) for one in students], config=config, **TEXT)
    for student, trained in zip(students, together, strict=True):
        (alone,) = train_starts(view, [Start(student)], config=config, **TEXT)
        assert same(alone.values, trained.values)


STAGED = QUICK.model_copy(
    update={
        "lr": None,
        "min_lr": None,
        "stages": (
            TrainingPhase(objective="hidden_mse", tokens=24 * 9, lr=5e-3),
            TrainingPhase(objective="forward_kl", tokens=16 * 9, lr=2e-3),
        ),
    }
)


def test_stages_follow_each_other_on_the_same_values_and_read_on_in_the_text(view, swept):
    (staged,) = train_plan(view, swept.plan, values=swept.values, config=STAGED, **TEXT).results
    assert staged.n_steps == 5 and staged.n_tokens == 40 * 9
    assert [point.step for point in staged.curve] == [0, 2, 3, 4, 5]
    first = STAGED.model_copy(update={"stages": STAGED.stages[:1]})
    alone = train_plan(view, swept.plan, values=swept.values, config=first, quality=falling(), **TEXT)
    then = train_plan(view, swept.plan, values=swept.values, config=STAGED, quality=falling(), **TEXT)
    (member,) = Trainees(view, [Start(alone.student)], weighted_sum("forward_kl")).members
    expected = [point.loss for point in alone.results[0].curve[1:]]
    assert [point.loss for point in then.results[0].curve[1:3]] == expected
    kl = Trainees(view, [Start(alone.student)], weighted_sum("forward_kl"))
    assert kl.validation(TEXT["selection"].batches(8)) == pytest.approx([then.results[0].curve[2].validation], rel=1e-6)
    assert member.targets[-1] == 6


def falling():
    """A measure that prefers the last step."""
    count = iter(range(0, -100, -1))
    return lambda student: float(next(count))


class Killed(BaseException):
    """Like a signal that nothing catches."""


@pytest.mark.in_turn(2)
@pytest.mark.parametrize("signal", [KeyboardInterrupt, Killed])
@pytest.mark.parametrize("stop_after", [1, 3, 4])
def test_killed_at_and_around_a_change_of_stage_it_goes_on_bit_for_bit(view, swept, tmp_path, stop_after, signal):
    unbroken = train_plan(view, swept.plan, values=swept.values, config=STAGED, **TEXT)

    def stop(step, n_steps, loss):
        assert n_steps == 5
        if step == stop_after:
            raise signal

    with pytest.raises(signal):
        train_plan(view, swept.plan, values=swept.values, config=STAGED, folder=tmp_path, progress=stop, **TEXT)
    resumed = train_plan(view, swept.plan, values=swept.values, config=STAGED, folder=tmp_path, **TEXT)
    assert same(unbroken.values, resumed.values)
    assert [p.validation for p in unbroken.results[0].curve] == [p.validation for p in resumed.results[0].curve]


# -- a repair of a plan with replacements --------------------------------------------------------------------------------


@pytest.mark.parametrize("edit", [TWO[0], Replace(start=1, stop=5, replacement="layer", options={"layers": 2})], ids=str)
def test_a_repaired_replacement_is_the_repaired_removal_bit_for_bit(view, edit):
    plan = plan_of(edit)
    removal = as_removal(plan)
    assert removal.is_pure_removal and len(removal.removed_layers) == edit.span.n - edit.options.get("layers", 1)
    fitted = fit_plan(view, removal, samples(200, 3), repair="sweep", batch_size=50)
    back = put_back(view, plan, fitted)
    assert back.plan.replacements == plan.replacements and back.result == fitted.result
    batch = TEXT["selection"].batches(8)[0]
    ours, theirs = student_of(view, back.plan, back.values), student_of(view, fitted.plan, fitted.values)
    assert torch.equal(view.logits(batch, student=ours), view.logits(batch, student=theirs))
    config = TrainConfig(lr=5e-4, batch=4, micro_batch=4, eval_every=6)
    done = train_plan(view, back.plan, values=back.values, config=config, **TEXT)
    assert done.results[0].n_parameters > sum(v.numel() for v in fitted.values.values()), "the replacement is trained whole"
    assert done.results[0].best.validation < done.results[0].first.validation


def test_a_replacement_that_starts_as_nothing_is_repaired_around(view):
    plan = plan_of(Replace(start=2, stop=4, replacement="linear"))
    fitted = fit_plan(view, as_removal(plan), samples(200, 3), repair="sweep", batch_size=50)
    assert as_removal(plan).removed_layers == (2, 3)
    back = put_back(view, plan, fitted)
    batch = TEXT["selection"].batches(8)[0]
    ours, theirs = student_of(view, back.plan, back.values), student_of(view, fitted.plan, fitted.values)
    torch.testing.assert_close(view.logits(batch, student=ours), view.logits(batch, student=theirs))
