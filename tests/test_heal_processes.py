"""Healing by two processes: the curve and the values of one, up to the order of sums."""

import json
from pathlib import Path

import pytest
import torch
from heal_processes import heal_here
from heal_world import config
from shared_work import launch


@pytest.mark.parametrize("method, processes", [("lora", "replicate"), ("full", "shard")])
def test_two_processes_heal_as_one(method, processes, tmp_path):
    alone, values = heal_here(tmp_path / "alone", method, "replicate")
    ended = launch(2, str(Path(__file__).parent / "heal_processes.py"), str(tmp_path), method, processes)
    assert all(one.code == 0 for one in ended), "\n".join(one.err[-3000:] for one in ended)
    for rank in range(2):
        curve = json.loads((tmp_path / f"{rank}.json").read_text())
        assert [point["step"] for point in curve] == [point["step"] for point in alone]
        for ours, theirs in zip(alone, curve, strict=True):
            assert theirs["kl"] == pytest.approx(ours["kl"], rel=1e-4) and theirs["nll"] == pytest.approx(ours["nll"], rel=1e-5)
            assert (theirs["loss"] is None) == (ours["loss"] is None)
            assert ours["loss"] is None or theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4)
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, value in values.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_only_full_healing_is_sharded():
    with pytest.raises(ValueError, match="method full"):
        config(processes="shard")
