"""Laws of everything that merges, grows or thins: layers on disk, a run that is killed, and several processes change no byte.

The rows of :data:`METHODS` are runs from a model to a checkpoint; a new way to merge, grow or thin is a row here.
"""

import json
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file
from shared_work import launch

from shoal import compress, load_recipe
from shoal.edits.plan import Plan
from shoal.engine.opening import Opening
from shoal.run.folder import RunFolder
from shoal.run.run_files import plan_file

FIT = {"tokens": 256}
TRAIN = {"tokens": 128, "batch": 4, "micro_batch": 4, "lr": 1e-3, "eval_every": 1, "several": "sequential"}
METHODS = {
    "laco, fitted and polished": ("laco", {"repair": "refit", "fit": FIT, "polish": "hidden", "train": TRAIN}),
    "sliding": ("sliding-merge", {}),
    "grow by identity": ("grow", {"grow": {"to": 8, "init": "identity"}}),
    "slayer": ("slayer", {"grow": {"cut": 1, "to": 7, "init": "slayer"}}),
    "lesa": ("lesa", {"grow": {"to": 8, "init": "lesa"}}),
    "magnitude by lamp": ("lamp", {}),
    "wanda by owl": ("owl", {"prune": {"method": "wanda", "allocate": "owl", "sparsity": "60%"}}),
    "sparsegpt 2:4": ("sparsegpt", {"prune": {"pattern": "2:4"}}),
    "a cut, a refit and zeros": ("depth-then-width", {"guard": 1, "repair": "refit", "fit": FIT}),
}
"""Recipe and what differs from it; nothing is healed."""


def recipe(small, method):
    name, changes = METHODS[method]
    text = {"sources": [small["text"]], "samples": 8, "length": 16, "selection": 4, "evaluation": 4}
    given = {"model": small["model"], "text": text, "heal": None, "speed": False, "search": {"tokens": 64}}
    budget = {} if name in ("grow", "slayer", "lesa", "wanda", "owl", "lamp", "sparsegpt") else {"drop": "2"}
    return load_recipe(name, {**given, **budget, **changes})


def left(folder):
    """The checkpoint's files as bytes, and the plan."""
    model = folder / "model"
    return {
        "weights": (model / "model.safetensors").read_bytes(),
        "config": (model / "config.json").read_bytes(),
        "plan": Plan.load(plan_file(folder)).to_json(),
    }


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """What a run leaves that was never stopped, all layers in memory; made once for each method."""
    folder, made = tmp_path_factory.mktemp("whole"), {}

    def of(method):
        if method not in made:
            made[method] = compress(recipe(small, method), folder / str(len(made))).folder
        return made[method]

    return of


class Killed(BaseException):
    """Passes by everything that catches errors, as a signal does."""


# Another method of the same stage is in every run.
ALIKE = (
    "laco, fitted and polished",
    "slayer",
    "sliding",
    "wanda by owl",
    "grow by identity",
    "lesa",
    "magnitude by lamp",
    "sparsegpt 2:4",
)


@pytest.mark.parametrize(
    "method", [pytest.param(method, marks=pytest.mark.slow if method in ALIKE else ()) for method in METHODS]
)
def test_one_layer_in_memory_and_two_kills_at_every_stage_change_no_byte(method, whole, small, tmp_path, monkeypatch):
    """Killed before a stage is recorded, when its files are there, and right behind that; a stage runs twice at most."""
    expected, finish, known = left(whole(method)), RunFolder.finish, []

    def dies(self, stage, key, **done):
        known.append(stage)
        if known.count(stage) == 1:
            raise Killed(f"before {stage} was recorded")
        finish(self, stage, key, **done)
        raise Killed(f"behind {stage}")

    monkeypatch.setattr(RunFolder, "finish", dies)
    found = None
    while found is None:
        assert len(known) < 20
        with suppress(Killed):
            found = compress(recipe(small, method), tmp_path / "run", opening=Opening(resident="1"))
    assert left(found.folder) == expected
    assert {stage: known.count(stage) for stage in known} == dict.fromkeys(known, 2) and {"plan", "model"} <= set(known)


JOB = """
import json, sys
from pathlib import Path
from test_around_stages import recipe
from shoal import compress
small, out, methods = json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
for number, method in enumerate(methods):
    compress(recipe(small, method), out / str(number))
"""

SHARED = ("sliding", "lesa", "wanda by owl")
"""Their values are the source's, or computed by every process from weights alone: sums of text decide, and enter none."""


@pytest.mark.slow  # Two processes import everything; test_workers.py has two in the gate.
def test_two_processes_write_the_bytes_of_one(whole, small, tmp_path):
    ended = launch(2, "-c", JOB, json.dumps(small), str(tmp_path), *SHARED)
    assert [one.code for one in ended] == [0, 0], "\n".join(one.err[-3000:] for one in ended)
    for number, method in enumerate(SHARED):
        assert left(tmp_path / str(number)) == left(whole(method)), method


SUMMED = ("laco, fitted and polished", "a cut, a refit and zeros")
"""Their repairs read one batch, so that one of two processes has none; the training of the first is shared, and differs by the
order of its sums. ``test_workers.py`` repairs with batches in both."""


@pytest.mark.slow  # Two processes import everything.
@pytest.mark.parametrize("method", SUMMED)
def test_two_processes_fit_and_polish_as_one(method, whole, small, tmp_path):
    ended = launch(2, "-c", JOB, json.dumps(small), str(tmp_path), method)
    assert [one.code for one in ended] == [0, 0], "\n".join(one.err[-3000:] for one in ended)
    mine, theirs = tmp_path / "0", whole(method)
    assert left(mine)["config"] == left(theirs)["config"]
    ours, expected = (load_file(one / "model" / "model.safetensors") for one in (mine, theirs))
    assert set(ours) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-5 * float(tensor.abs().max()), msg=name)
