"""A sweep that is killed loses the layer it was in and no other, and goes on to the bytes of an unbroken one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import VOCAB, tiny_model
from safetensors.torch import load_file

import shoal.fit.sweep
from shoal.edits.drop import Drop
from shoal.edits.plan import Plan
from shoal.engine.view import DecoderView
from shoal.fit.fit_plan import fit_plan
from shoal.fit.fit_result import FitResult
from shoal.fit.kept_layers import KeptLayers
from shoal.fit.layer_fit import LayerSolver
from shoal.fit.teacher_prefix import Reuse
from shoal.text.samples import Samples
from shoal.words.structure import Size

ROOT = Path(__file__).parent.parent
LENGTH, N_LAYERS, FITTED = 12, 8, [1, 3, 4, 6, 7]
"""Layers 2 and 5 are gone."""


class Killed(BaseException):
    """As sudden as a signal: nothing catches it."""


def fitted(view, folder, *, repair="sweep", die_in=None):
    """The sweep, and how many layers it solved; ``die_in``: the layer that it never finishes."""
    size, n_solved = Size(layers=N_LAYERS, parameters=1), []
    plan = Plan(
        source="x", source_hash="x", teacher="x", n_layers=N_LAYERS, edits=(Drop(indices=(2, 5)),), before=size, after=size
    )
    ids_NT = torch.randint(3, VOCAB, (60, LENGTH), generator=torch.Generator().manual_seed(0))
    text = Samples(ids_NT, torch.full((60,), LENGTH), "training", "random ids", "hash", 0)

    class Counted(LayerSolver):
        def solve(self, sites):
            if self.here.layer == die_in:
                raise Killed
            n_solved.append(self.here.layer)
            return super().solve(sites)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shoal.fit.sweep, "LayerSolver", Counted)
        try:
            return fit_plan(view, plan, text, repair=repair, batch_size=20, reuse=Reuse(KeptLayers(folder))), n_solved
        except Killed:
            return None, n_solved


@pytest.mark.parametrize("family", [pytest.param("llama", marks=pytest.mark.slow), "gpt2"])
def test_a_sweep_that_died_in_a_layer_goes_on_to_the_same_bytes(family, tmp_path):
    view = DecoderView(tiny_model(family, n_layers=N_LAYERS))
    whole, solved = fitted(view, tmp_path / "whole")
    assert solved == FITTED
    for die_in in (1, 4):
        folder = tmp_path / str(die_in)
        before, after = fitted(view, folder, die_in=die_in)[1], fitted(view, folder)
        assert before + after[1] == FITTED, "only the layer it was in is solved again"
        again = after[0]
        assert again.plan == whole.plan and again.values.keys() == whole.values.keys()
        assert all(torch.equal(value, again.values[name]) for name, value in whole.values.items())
        clocks = [one.model_copy(update={"seconds": 0.0}) for one in (*whole.result.layers, *again.result.layers)]
        assert clocks[: len(FITTED)] == clocks[len(FITTED) :]


def test_layers_of_a_finished_sweep_are_forgotten(tmp_path):
    kept = KeptLayers(tmp_path / "layers")
    fitted(DecoderView(tiny_model("llama", n_layers=N_LAYERS)), tmp_path / "layers")
    assert kept.read(1) is not None and kept.read(2) is None
    kept.clear()
    assert kept.read(1) is None and not (tmp_path / "layers").exists()


class Sent:
    """What the first worker sends to the others, seen from one of them."""

    def __init__(self):
        self.devices = set()

    def from_first(self, make):
        value = make()
        self.devices |= {one.device.type for one in value.values.values()}
        return value

    def on_first(self, make):
        return make()


def test_a_worker_holds_the_values_on_its_own_card(tmp_path):
    """They travel in memory: a card of the first worker would be the card of all. The device ``meta`` stands for one."""
    fitted(DecoderView(tiny_model("llama", n_layers=N_LAYERS)), tmp_path)
    sent = Sent()
    found = KeptLayers(tmp_path, workers=sent).read(1, device="meta")
    assert sent.devices == {"cpu"} and {one.device.type for one in found.values.values()} == {"meta"}


KILLS_ITSELF = """
import os, signal, sys
from shoal.cli import main
from shoal.fit.kept_layers import KeptLayers
place, write, n = sys.argv.pop(1), KeptLayers.write, 0
def die(self, layer, found):
    global n
    write(self, layer, found)
    n += place in str(self._folder)
    if n == 2:
        os.kill(os.getpid(), signal.SIGKILL)
KeptLayers.write = die
sys.exit(main())
"""


def run(program, small, out):
    """A small run in a process of its own, on one thread."""
    options = (
        f"{small['model']} --text {small['text']} --drop 2 --guard 2 --repair sweep --fit-tokens 640 --length 16 --heal none"
    )
    command = [sys.executable, *program, "compress", *options.split(), "--samples", "12", "--no-speed", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """The folder of a run that nothing stops."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(["-m", "shoal"], small, folder).returncode == 0
    return folder


@pytest.mark.slow  # Three processes a case; the law above it kills the sweep in this one.
@pytest.mark.parametrize("place", ["tournament", "fit-layers"])
def test_a_run_killed_in_a_candidate_or_in_its_repair_ends_as_an_unbroken_one(place, small, whole, tmp_path):
    broken = tmp_path / "broken"
    assert run(["-c", KILLS_ITSELF, place], small, broken).returncode == -signal.SIGKILL
    assert len(list(broken.glob(f"{place}/*/layer-*.json"))) == 2
    resumed = run(["-m", "shoal"], small, broken)
    assert resumed.returncode == 0, resumed.stderr
    ours, theirs = (load_file(one / "fit.safetensors") for one in (whole, broken))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert Plan.load(whole / "plan.json") == Plan.load(broken / "plan.json")
    assert FitResult.load(broken / "fit.json").kl_after == FitResult.load(whole / "fit.json").kl_after
    assert not any((broken / one).exists() for one in ("tournament", "fit-layers"))
