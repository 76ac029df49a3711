"""A healing that is killed, by force and then politely, and started again ends with the bits of one that nobody disturbed."""

import os
import signal
import subprocess
import sys
import time

import pytest
from heal_command import FEW
from world import write_text

pytestmark = pytest.mark.slow  # four processes that import everything


def started(cut, out, *more):
    """The command as a process of its own, which trains 300 steps and leaves about 20 checkpoints on its way."""
    text = out.parent / "text.jsonl"
    if not text.exists():
        write_text(text, n_documents=1500)
    arguments = [str(one) for one in (cut["run"], "--text", text, "--out", out, *FEW, "--tokens", 19200, *more)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "shoal", "heal", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process):
    _, err = process.communicate(timeout=400)
    return process.returncode, err


def last_step(out):
    """Of the newest checkpoint that was written to its end; 0 where there is none."""
    return max((int(path.parent.name.split("-")[1]) for path in out.glob("heal/trainer/*/trainer_state.json")), default=0)


def interrupt_behind(process, out, step, number):
    """Send a signal as soon as there is a checkpoint behind that step."""
    end = time.monotonic() + 300
    while last_step(out) <= step and process.poll() is None:
        assert time.monotonic() < end, "too slow"
        time.sleep(0.01)
    process.send_signal(number)
    return ended(process)


@pytest.mark.parametrize("more", [(), ("--resident", 1, "--method", "full")], ids=["lora", "full, teacher on disk"])
def test_killed_terminated_and_started_again_equals_unbroken(more, cut, tmp_path):
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    code, err = interrupt_behind(started(cut, broken, *more), broken, 0, signal.SIGKILL)
    assert code == -signal.SIGKILL, err
    first = last_step(broken)
    code, err = interrupt_behind(started(cut, broken, *more), broken, first, signal.SIGTERM)
    assert code == 130 and "run the same command again" in err, err
    assert last_step(broken) > first and not (broken / "model").exists()
    for out in (broken, whole):
        code, err = ended(started(cut, out, *more))
        assert code == 0, err
    for name in ("heal.safetensors", "model/model.safetensors"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
    assert not (broken / "heal").exists()
