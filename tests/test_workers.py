"""Several processes: the same figures as one, on every one of them, with nothing read twice and nothing left out."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shared_work import run_job, share_everything

from shoal.workers import ALONE, Workers, join, report_failure

SUMMATION = dict(rtol=1e-11, atol=1e-13, equal_nan=True)
"""Sums of nine samples in fp64 in another order: rounding of 1e-16 per term, times what differences of squares lose (1e4)."""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process finds, and what each of two finds."""
    folder = tmp_path_factory.mktemp("job")
    return share_everything(ALONE, folder), run_job(2, folder)


# -- shares --------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers()), st.integers(1, 7))
def test_shares_are_the_whole_without_overlap_and_equal_up_to_one(items, size):
    shares = [list(Workers(rank, size).share(items)) for rank in range(size)]
    assert [shares[i % size][i // size] for i in range(len(items))] == items
    assert sum(map(len, shares)) == len(items)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_has_everything_and_waits_for_nobody():
    sums = {"a": torch.arange(3, dtype=torch.float64)}
    assert list(ALONE.share("abc")) == ALONE.gather("abc") == ["a", "b", "c"]
    assert ALONE.sum(sums)["a"] is sums["a"]
    assert ALONE.from_first(lambda: 7) == ALONE.on_first(lambda: 7) == 7
    assert join() is ALONE
    assert ALONE.device("cuda:1") == "cuda:1"


def test_one_card_for_two_processes_is_refused():
    with pytest.raises(ValueError, match="--device cuda:1 is one card for 2 processes; use --device cuda"):
        Workers(1, 2, local_rank=1, local_size=2).device("cuda:1")


def test_what_the_first_does_alone_may_not_ask_the_others():
    first = Workers(0, 2)
    first._tell = lambda told: None
    with pytest.raises(AssertionError, match="asks the other workers, who wait for it"):
        first.from_first(lambda: first.gather([1]))


def test_the_reason_of_a_failure_is_left_for_the_launcher(tmp_path, monkeypatch):
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    report_failure("error: the text is empty")
    failure = ProcessFailure(local_rank=1, pid=1, exitcode=2, error_file=str(tmp_path / "error.json"))
    assert failure.message["extraInfo"]["py_callstack"] == "error: the text is empty"
    assert json.loads((tmp_path / "error.json").read_text())["message"]["message"] == "error: the text is empty"


# -- two processes -------------------------------------------------------------------------------------------------------


def test_every_process_holds_the_same_bits(found):
    _, (first, second) = found
    torch.testing.assert_close(first["tables"], second["tables"], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(first["rescanned"], second["rescanned"], rtol=0, atol=0, equal_nan=True)
    assert str(first["anatomy"]) == str(second["anatomy"])  # as text: NaN is not equal to itself
    assert first["exact"] == second["exact"]


def test_a_shared_scan_is_that_of_one_process_up_to_the_order_of_sums(found):
    one, (first, _) = found
    assert one["tables"].keys() == first["tables"].keys() >= {"cosine/rest", "cka/rest"}
    torch.testing.assert_close(first["tables"], one["tables"], **SUMMATION)
    torch.testing.assert_close(first["rescanned"], one["rescanned"], **SUMMATION)
    torch.testing.assert_close(first["patched"], one["patched"], rtol=1e-6, atol=0, equal_nan=True)  # solved: condition 1e5
    assert first["provenance"] == one["provenance"]
    for name, value in one["anatomy"].items():
        np.testing.assert_allclose(first["anatomy"][name], value, rtol=1e-11)


def test_shared_measures_are_those_of_one_process_bit_for_bit(found):
    """Per-sample figures are gathered in order and added once."""
    one, (first, _) = found
    assert first["exact"] == one["exact"]
