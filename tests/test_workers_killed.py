"""A worker that is killed ends the job with its rank and the reason; the same command goes on from the files."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from world import write_text

pytestmark = pytest.mark.slow  # Three processes import everything, three times over.

ROOT = Path(__file__).parent.parent


@contextmanager
def job(model, text, out):
    """Three workers that train for a few hundred steps, under PyTorch's launcher; ended with the block."""
    options = (
        f"{model} --text {text} --out {out} --length 16 --drop 2 --guard 2 --samples 16 --replace layer --train-tokens 20000"
    )
    command = [sys.executable, *"-m torch.distributed.run --nproc-per-node 3 -m shoal compress".split(), *options.split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, env=environment, cwd=ROOT, **pipes) as launcher:
        try:
            yield launcher
        finally:
            launcher.terminate()  # The launcher ends its workers.


def worker(launcher, rank):
    """The process of one rank: a child of the launcher."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if parent == str(launcher.pid) and f"RANK={rank}" in (folder / "environ").read_text().split("\0"):
                return int(folder.name)
        except OSError:  # The process is gone, or is that of another user.
            continue
    raise AssertionError(f"no process of rank {rank}")


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "too slow"
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the worker in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_fails_the_job_and_a_restart_ends_as_an_unbroken_run(small, tmp_path, rank):
    text = str(write_text(tmp_path / "text.jsonl", n_documents=1500))
    with job(small["model"], text, tmp_path / "broken") as broken:
        wait_for(lambda: list((tmp_path / "broken").glob("train/*/checkpoint.safetensors")) or broken.poll() is not None)
        assert broken.poll() is None, broken.stderr.read()
        os.kill(worker(broken, rank), signal.SIGKILL)
        started = time.monotonic()
        _, err = broken.communicate(timeout=60)
    assert time.monotonic() - started < 20
    assert broken.returncode != 0
    root_cause = err.split("Root Cause")[1]
    assert f"rank      : {rank}" in root_cause and "SIGKILL" in root_cause
    assert not (tmp_path / "broken" / "model").exists()
    for out in ("broken", "unbroken"):
        with job(small["model"], text, tmp_path / out) as run:
            _, err = run.communicate(timeout=240)
        assert run.returncode == 0, err
    ours, theirs = (load_file(tmp_path / out / "train.safetensors") for out in ("broken", "unbroken"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    ours, theirs = (load_file(tmp_path / out / "model" / "model.safetensors") for out in ("broken", "unbroken"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
