"""Healing by two processes: the curve and the values of one, up to the order of sums."""

import json
from pathlib import Path

import pytest
import torch
from heal_processes import heal_here
from heal_world import config
from shared_work import launch

CASES = ("lora-replicate", "full-shard")
PRUNED = "lora-replicate-pruned"


@pytest.fixture(scope="module")
def healed_by_two(tmp_path_factory):
    """The folder of what two processes found: every case in one job, because a job takes longer to begin than to heal."""
    folder = tmp_path_factory.mktemp("two")
    ended = launch(2, str(Path(__file__).parent / "heal_processes.py"), str(folder), *CASES, PRUNED)
    assert all(one.code == 0 for one in ended), "\n".join(one.err[-3000:] for one in ended)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_heal_as_one(case, healed_by_two, tmp_path):
    alone, values = heal_here(tmp_path, case.split("-")[0], "replicate")
    for rank in range(2):
        curve = json.loads((healed_by_two / case / f"{rank}.json").read_text())
        assert [point["step"] for point in curve] == [point["step"] for point in alone]
        for ours, theirs in zip(alone, curve, strict=True):
            assert theirs["kl"] == pytest.approx(ours["kl"], rel=1e-4) and theirs["nll"] == pytest.approx(ours["nll"], rel=1e-5)
            assert (theirs["loss"] is None) == (ours["loss"] is None)
            assert ours["loss"] is None or theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4)
        found = torch.load(healed_by_two / case / f"{rank}.pt")
        for name, value in values.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_all_processes_prune_the_same_entries(healed_by_two):
    """Each sees a part of the batch, and gradients alone are averaged: replicas that differ would never meet again."""
    first, second = (torch.load(healed_by_two / PRUNED / f"{rank}.pt") for rank in range(2))
    adapters = [name for name in first if "lora_A" in name]
    assert adapters and all((first[name] == 0).float().mean() == 0.5 for name in adapters)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_only_full_healing_is_sharded():
    with pytest.raises(ValueError, match="method full"):
        config(processes="shard")
