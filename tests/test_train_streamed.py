"""A repair of a model whose layers are on disk has the bits of the one in memory: values, choices and the checkpoint."""

import pytest
import torch
from families import VOCAB, every_family, tiny_model
from safetensors.torch import load_file

from shoal.checkpoint.in_memory import cut
from shoal.checkpoint.rewrite import rewrite
from shoal.checkpoint.save import save
from shoal.edits.drop import Drop
from shoal.edits.plan import Plan
from shoal.edits.replace.replace_edit import Replace
from shoal.edits.student_of import student_of
from shoal.engine.open import open_model
from shoal.engine.opening import Opening
from shoal.engine.spill import Spill
from shoal.engine.streamed import open_streamed
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.fit.fit_plan import fit_plan
from shoal.fit.table import REPAIRS
from shoal.text.samples import Samples
from shoal.train import prefix as states
from shoal.train.config import TrainConfig
from shoal.train.joint import Trainees
from shoal.train.prefix import AskedBoundaries, Live, Rounds
from shoal.train.train_plan import train_plan
from shoal.words.structure import Size
from shoal.words.types import Unit

SIZE = Size(layers=6, parameters=1)
CONFIG = TrainConfig(lr=1e-3, min_lr=1e-3, warmup=0.0, batch=4, micro_batch=2, eval_every=2)


def plan_of(*edits):
    return Plan(source="tiny", source_hash="0", teacher="tiny", n_layers=6, edits=edits, before=SIZE, after=SIZE)


def samples(n, *, seed, padded=False, length=9):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, length + 1, (n,), generator=g) if padded else torch.full((n,), length)
    ids = torch.randint(3, VOCAB, (n, length), generator=g) * (torch.arange(length)[None] < lengths[:, None])
    return Samples(ids, lengths, "training", "planted", f"hash-{seed}-{n}-{padded}", seed)


TEXT = dict(training=samples(16, seed=1), selection=samples(4, seed=2, padded=True))
ONE = plan_of(Replace(start=2, stop=4, replacement="layer"))
TWO = plan_of(Replace(start=1, stop=3, replacement="layer"), Replace(start=4, stop=6, replacement="layer"))


def pair_of(folder, *, n_resident=1, dtype=None):
    """The same checkpoint in memory and on disk."""
    opened, streamed = open_streamed(folder, Opening(dtype=dtype), n_resident=n_resident)
    return DecoderView(open_model(folder, Opening(dtype=dtype)).model), DecoderView(opened.model, residency=streamed)


@pytest.fixture
def pair(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "source", max_shard_size="20KB")
    return pair_of(tmp_path / "source")


def refit(view):
    """Layer 2 fitted to do without layer 3, on enough tokens that its new neurons and the solve of its attention are kept."""
    fitted = fit_plan(view, plan_of(Drop(indices=(3,))), samples(80, seed=1), repair="refit", batch_size=4)
    maps = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "self_attn.o_proj")
    assert fitted.values.keys() == {f"refit.2.{name}.weight" for name in maps}
    return fitted


def timeless(result):
    points = [point.model_copy(update={"seconds": 0.0}) for point in result.curve]
    return result.model_copy(update={"seconds": 0.0, "curve": tuple(points)})


def assert_same_values(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def assert_same_training(a, b):
    assert_same_values(a.values, b.values)
    assert [timeless(one) for one in a.results] == [timeless(one) for one in b.results]


def tensors_of(folder):
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


@pytest.mark.parametrize("name", every_family())
def test_every_family_is_swept_trained_and_saved_alike(name, tmp_path):
    tiny_model(name).save_pretrained(tmp_path / "source", max_shard_size="30KB")
    whole, streamed = pair_of(tmp_path / "source")
    swept = []
    for view in (whole, streamed):
        try:
            swept.append(fit_plan(view, plan_of(Drop(indices=(3,))), TEXT["training"], repair="sweep", batch_size=4))
        except ValueError as refusal:
            swept.append(str(refusal))
    if isinstance(swept[0], str):
        assert swept[0] == swept[1]
    else:
        assert_same_values(swept[0].values, swept[1].values)
    trained = [train_plan(view, ONE, config=CONFIG, **TEXT) for view in (whole, streamed)]
    assert_same_training(*trained)
    assert trained[0].results[0].best_step > 0
    save(cut(whole, trained[0].student), None, tmp_path / "memory")
    rewrite(tmp_path / "source", ONE, tmp_path / "files", values=trained[1].values, model=streamed.model)
    assert_same_values(tensors_of(tmp_path / "files"), tensors_of(tmp_path / "memory"))


@pytest.mark.parametrize("name", ["qwen3_moe", *(pytest.param(one, marks=pytest.mark.slow) for one in ("gemma2", "llama"))])
@pytest.mark.parametrize("repair", sorted(set(REPAIRS) - {"none"}))
def test_every_repair_is_fitted_and_saved_alike(name, repair, tmp_path):
    tiny_model(name).save_pretrained(tmp_path / "source", max_shard_size="30KB")
    whole, streamed = pair_of(tmp_path / "source")
    plan, fitted = plan_of(Drop(indices=(2, 3))), []
    for view in (whole, streamed):
        try:
            fitted.append(fit_plan(view, plan, samples(40, seed=1), repair=repair, batch_size=4))
        except ValueError as refusal:
            fitted.append(str(refusal))
    if isinstance(fitted[0], str):
        assert fitted[0] == fitted[1]
        return
    assert_same_values(fitted[0].values, fitted[1].values)
    save(cut(whole, student_of(whole, fitted[0].plan, fitted[0].values)), None, tmp_path / "memory")
    rewrite(tmp_path / "source", fitted[1].plan, tmp_path / "files", values=fitted[1].values, model=streamed.model)
    assert_same_values(tensors_of(tmp_path / "files"), tensors_of(tmp_path / "memory"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_is_trained_alike(dtype, tmp_path):
    tiny_model("qwen3_moe").save_pretrained(tmp_path / "source")
    assert_same_training(*(train_plan(view, ONE, config=CONFIG, **TEXT) for view in pair_of(tmp_path / "source", dtype=dtype)))


@pytest.mark.parametrize("n_bytes", [0, 14_000, 28_000, 10**9])
def test_the_size_of_rounds_does_not_matter(pair, n_bytes, monkeypatch):
    made = []
    monkeypatch.setattr(states, "Rounds", lambda view: made.append(Rounds(view, n_bytes=n_bytes)) or made[-1])
    whole, streamed = pair
    ours, theirs = (train_plan(view, ONE, config=CONFIG, **TEXT) for view in (streamed, whole))
    assert_same_training(ours, theirs)
    training, validating = made
    assert training.n_readings == {0: 4, 14_000: 4, 28_000: 2, 10**9: 1}[n_bytes], "a step has three states of 4608 bytes"
    assert validating.n_readings == (6 if n_bytes == 0 else 1), "three validations of two batches, kept where they fit"


def test_states_that_spill_give_the_same_bits(pair, monkeypatch):
    monkeypatch.setattr(states, "Spill", lambda *_: Spill(0))
    assert_same_training(*(train_plan(view, ONE, config=CONFIG, **TEXT) for view in pair))


def test_a_round_reads_each_layer_of_the_prefix_once(pair):
    streamed = pair[1]
    residency = streamed.residency
    sizes = [sum(slot.n_bytes for _, slot in residency._places[layer].values()) for layer in range(6)]
    teacher, student = Student(name="teacher"), Student(frozenset({Unit("layer", 1)}))
    asked = AskedBoundaries((teacher, student), (frozenset({2, 4}), frozenset({3})))
    batches = TEXT["training"].batches(4)
    source = Rounds(streamed)
    with residency.layer(5):  # With this nothing of the prefix is there, nor read ahead.
        pass
    before = residency.bytes_read
    list(source.ahead([(0, batches)], asked))
    residency._reader.submit(lambda: None).result()  # What was begun is done.
    assert residency.bytes_read - before == sum(sizes[:5])  # Layer 4 was read ahead, for whoever comes next.
    before = residency.bytes_read
    list(source.ahead([(0, batches)], asked))
    assert residency.bytes_read == before, "the same batches are still there"


@pytest.mark.parametrize("limit", [0, 10**9])
def test_states_of_a_round_are_those_of_single_readings(pair, limit, monkeypatch):
    monkeypatch.setattr(states, "Spill", lambda *_: Spill(limit))
    whole, streamed = pair
    students = [
        Student(name="teacher"),
        Student(frozenset({Unit("layer", 0)})),
        Student(frozenset({Unit("layer", 3), Unit("attn", 2)})),
        student_of(whole, ONE),
        Student(frozenset({Unit("layer", 1)})),
    ]
    wanted = [{0, 2, 6}, {0, 1, 5}, {2, 3, 4}, {4, 6}, set()]
    asked = AskedBoundaries(tuple(students), tuple(frozenset(one) for one in wanted))
    batches = [*TEXT["training"].batches(4), *TEXT["selection"].batches(3)]
    live, rounds = Live(whole), Rounds(streamed)
    list(rounds.ahead([(0, batches)], asked))
    for batch in batches:
        theirs, ours = live.states(whole.read(batch), asked), rounds.states(streamed.read(batch), asked)
        assert [set(one) for one in ours] == wanted == [set(one) for one in theirs]
        for a, b in zip(ours, theirs, strict=True):
            assert all(torch.equal(a[at], b[at]) for at in a)


def test_steps_of_a_round_read_no_weights(pair):
    """One layer is held at most, and between two validations nothing is read from disk."""
    streamed = pair[1]
    read = []
    config = CONFIG.model_copy(update={"eval_every": 4})
    train_plan(streamed, ONE, config=config, **TEXT, progress=lambda step, n, loss: read.append(streamed.residency.bytes_read))
    assert len(read) == 4 and len(set(read)) == 1
    assert sum(not any(p.is_meta for p in layer.parameters()) for layer in streamed._stub_layers) <= 1


@pytest.mark.parametrize(("edit", "needed"), [("replacement", set()), ("refit", {2})])
def test_between_steps_no_layer_and_while_measuring_no_gradient_is_held(pair, edit, needed, monkeypatch):
    whole, streamed = pair
    plan, values = ONE, None
    if edit == "refit":
        fitted = refit(whole)
        plan, values = fitted.plan, fitted.values
    held, gradients, optimised = [], [], torch.optim.AdamW.step

    def step(self, *args):
        layers = enumerate(streamed._stub_layers)
        held.append({index for index, layer in layers if not all(p.is_meta for p in layer.parameters())})
        gradients.append(all(p.grad is not None for group in self.param_groups for p in group["params"]))
        return optimised(self, *args)

    def deploy(self, deployed=Trainees.deploy):
        gradients.append(any(p.grad is not None for p in self.parameters()))
        deployed(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    monkeypatch.setattr(Trainees, "deploy", deploy)
    train_plan(streamed, plan, values=values, config=CONFIG, **TEXT)
    assert held == [needed] * 4
    assert gradients == [False, True, True, False, True, True, False]


@pytest.mark.parametrize("several", ["sequential", "teacher_forced"])
def test_several_replacements_are_trained_alike(pair, several):
    config = CONFIG.model_copy(update={"several": several})
    assert_same_training(*(train_plan(view, TWO, config=config, **TEXT) for view in pair))


@pytest.mark.parametrize(
    ("plan", "objective", "several", "message"),
    [
        (ONE, "forward_kl", "joint", r"every step of forward_kl runs 2 kept layers \(4..5\).*an objective on hidden states"),
        (ONE, "hidden_mse + 0.1*forward_kl", "joint", "--resident 2"),
        (TWO, "hidden_mse", "joint", r"runs 1 kept|train.several=sequential"),
    ],
)
def test_layers_that_every_step_needs_must_be_held(tmp_path, plan, objective, several, message):
    tiny_model("llama").save_pretrained(tmp_path / "source")
    config = CONFIG.model_copy(update={"objective": objective, "several": several})
    if plan is TWO:
        plan = plan_of(Replace(start=0, stop=2, replacement="layer"), Replace(start=4, stop=6, replacement="layer"))
    whole, streamed = pair_of(tmp_path / "source")
    with pytest.raises(ValueError, match=message):
        train_plan(streamed, plan, config=config, **TEXT)
    enough = pair_of(tmp_path / "source", n_resident=2)[1]
    assert_same_training(*(train_plan(view, plan, config=config, **TEXT) for view in (enough, whole)))


def test_refits_are_polished_alike(pair, tmp_path):
    """A refit runs its own layer at every step, which is then the one that is held."""
    fitted = refit(pair[0])
    runs = [train_plan(view, fitted.plan, values=fitted.values, config=CONFIG, **TEXT) for view in pair]
    assert_same_training(*runs)


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_run_killed_in_a_round_goes_on_with_the_same_bits(pair, tmp_path, at):
    streamed = pair[1]
    unbroken = train_plan(streamed, ONE, config=CONFIG, folder=tmp_path / "unbroken", **TEXT)

    def die(step, n_steps, loss):
        if step == at:
            raise Killed

    with pytest.raises(Killed):
        train_plan(streamed, ONE, config=CONFIG, folder=tmp_path / "broken", progress=die, **TEXT)
    resumed = train_plan(streamed, ONE, config=CONFIG, folder=tmp_path / "broken", **TEXT)
    assert_same_training(resumed, unbroken)
    in_memory = train_plan(pair[0], ONE, config=CONFIG, folder=tmp_path / "unbroken", **TEXT)
    assert_same_training(in_memory, unbroken)  # The values are read back from the checkpoint of the streamed run.


def test_a_full_disk_says_where_and_what_to_do(pair, monkeypatch):
    class Full:
        def seek(self, offset):
            pass

        def write(self, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(states, "Spill", lambda *_: Spill(0))
    monkeypatch.setattr(Spill, "_open", lambda self: setattr(self, "_file", Full()) or self._file)
    monkeypatch.setattr(Full, "close", lambda self: None, raising=False)
    with pytest.raises(ValueError, match="no space left in .* set TMPDIR"):
        train_plan(pair[1], ONE, config=CONFIG, **TEXT)
