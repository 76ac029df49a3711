"""Laws of every verb: no silence in a log, however slow the machine is, and every flag that is accepted is heard.

Each verb runs once, with all flags of the table that it takes, on a machine whose layers, solves and files are slow.
"""

import time
from types import SimpleNamespace
from unittest import mock

import pytest
import typer
from every_verb import OPEN_NOTHING, SLOW, VERBS, prepare, write_world
from slow_machine import SlowMachine

from shoal.cli.table import app
from shoal.engine.streamed import Streamed
from shoal.text.corpus import Corpus

MOST_UNREPORTED = 60.0
"""Seconds between two steps, as ten batches take in the layers: a model is opened and probed, or a round of speed is run."""

SPEED = ("measure speed", "try how fast it is")
SPEED_SHARE, SPEED_SECONDS = 0.1, 10.0

OPTIONS = {
    verb: {name for one in command.params for name in one.opts}
    for verb, command in typer.main.get_command(app).commands.items()
}
FLAGS = {
    "--trust-remote-code": (),
    "--dtype": ("bfloat16",),
    "--seed": (3,),
    "--field": ("text",),
    "--no-speed": (),
    "--resident": (2,),
}
UNREAD = {
    "plan unopened": ("--dtype", "--seed", "--field", "--resident"),
    "compress": ("--resident", "--no-speed"),
    "compress, streamed": ("--resident",),
    "compress, repaired": ("--resident",),
    "compress, healed": ("--resident",),
    "run": ("--resident",),
    "eval": ("--no-speed",),
    "eval --teacher": ("--no-speed",),
}
"""Flags that are not given: they are refused there, given already, or another law needs the verb without them."""

RECORDS = {}


def flags_of(verb):
    """The flags that a verb takes, without those that it is not given here."""
    taken = OPTIONS[verb.split()[0].rstrip(",")]
    return {flag: values for flag, values in FLAGS.items() if flag in taken and flag not in UNREAD.get(verb, ())}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("own code"), "own config")


@pytest.fixture(params=[pytest.param(verb, marks=pytest.mark.slow if verb in SLOW else ()) for verb in VERBS])
def record(request, world, shoal):
    """What a verb did: run when it is first asked for."""
    verb = request.param
    if verb not in RECORDS:
        prepare(world, shoal)
        RECORDS[verb] = run_slowly(verb, world, shoal)
    return RECORDS[verb]


def run_slowly(verb, world, shoal):
    """The verb on a slow machine, with spies on the text, on layers that are read from disk, and on the model's forwards."""
    texts, streams = [], []
    given = [part for flag, values in flags_of(verb).items() for part in (flag, *values)]
    arguments = VERBS[verb](world)
    started = time.monotonic()
    machine = SlowMachine()
    clock = SimpleNamespace(perf_counter=lambda: machine.seconds, monotonic=lambda: started + machine.seconds)
    with (
        machine.running(),
        spied(Corpus, lambda *_, seed=0, field=None, **__: texts.append((seed, field))),
        spied(Streamed, lambda *_, n_resident=None, **__: streams.append(n_resident)),
        mock.patch("shoal.evaluate.speed.time", clock),
        mock.patch("shoal.run.measuring.time", clock),
    ):
        code, _, err = shoal(*arguments, *given)
    forwards = [line.rsplit(" ", 1) for line in world["mark"].read_text().splitlines()] if world["mark"].exists() else []
    return SimpleNamespace(verb=verb, code=code, err=err, machine=machine, texts=texts, streams=streams, forwards=forwards)


def spied(kind, look):
    """While the block runs, ``look`` gets what objects of a class are made with."""
    made = kind.__init__

    def make(self, *args, **options):
        look(*args, **options)
        made(self, *args, **options)

    return mock.patch.object(kind, "__init__", make)


def test_it_runs_to_its_end_with_the_models_own_class(record):
    assert record.code == 0, record.err
    assert record.forwards or record.verb in OPEN_NOTHING, "another class than the model's own ran"


def test_a_log_is_never_silent_for_more_than_twenty_seconds(record):
    assert record.machine.unsaid == []


def test_steps_come_often_enough_for_a_time_left(record):
    long = [(gap, where) for gap, where in record.machine.unreported if gap > MOST_UNREPORTED]
    assert long == []


def test_measuring_speed_takes_a_tenth_of_the_run_at_most(record):
    at = [seconds for seconds, what, *_ in record.machine.steps if what.split(", ")[-1] in SPEED]
    spent = at[-1] - at[0] if at else 0.0
    assert spent <= max(SPEED_SECONDS, SPEED_SHARE * record.machine.seconds)
    assert not at or "--no-speed" not in flags_of(record.verb)


def test_the_flags_of_the_text_reach_every_text_that_is_read(record):
    flags = flags_of(record.verb)
    if "--seed" in flags or "--field" in flags:
        expected = (flags.get("--seed", (0,))[0], flags.get("--field", (None,))[0])
        assert record.texts or record.verb in OPEN_NOTHING
        assert set(record.texts) <= {expected}


def test_the_dtype_reaches_teacher_and_student(record):
    """A healing trains and verifies the student in its checkpoint's dtype; the teacher has six layers, the student four."""
    if "--dtype" in flags_of(record.verb):
        heard = [dtype for dtype, layers in record.forwards if not record.verb.startswith("heal") or layers == "6"]
        assert set(heard) <= {"torch.bfloat16"} and (heard or record.verb == "plan --memory")


def test_the_layers_in_memory_are_as_many_as_asked_for(record):
    if "--resident" in flags_of(record.verb):
        assert record.streams[:1] == [2] or record.verb == "plan --memory"


def test_no_verb_is_forgotten():
    """Every verb that takes a model of its own code is tried; the others open no such model."""
    tried = {verb.split()[0].rstrip(",") for verb in VERBS}
    assert set(OPTIONS) - tried == {"demo"}, "the demo is a compression of the bundled model"
