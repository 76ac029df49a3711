"""Several processes: the same figures as one, on every one of them, with nothing read twice and nothing left out."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shared_work import launch, run_job, share_everything

from shoal.engine.workers import ALONE, Workers, join, report_failure

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
    with pytest.raises(ValueError, match="--device cuda:1 is the same for 2 processes; use --device cuda"):
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
    # The records are compared as text, because NaN is not equal to itself.
    assert str(first["anatomy"]) == str(second["anatomy"])
    assert first["exact"] == second["exact"]
    assert first["result"] == second["result"]
    torch.testing.assert_close(first["trained"], second["trained"], rtol=0, atol=0)
    torch.testing.assert_close(first["swept"], second["swept"], rtol=0, atol=0)
    for (ours, facts), (theirs, others) in zip(first["thinned"], second["thinned"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        assert facts == others
    torch.testing.assert_close(first["gradients"], second["gradients"], rtol=0, atol=0)


def test_a_shared_scan_is_that_of_one_process_up_to_the_order_of_sums(found):
    one, (first, _) = found
    assert one["tables"].keys() == first["tables"].keys() >= {"cosine/rest", "cka/rest"}
    torch.testing.assert_close(first["tables"], one["tables"], **SUMMATION)
    torch.testing.assert_close(first["rescanned"], one["rescanned"], **SUMMATION)
    torch.testing.assert_close(
        first["linear errors"], one["linear errors"], rtol=1e-9, atol=0, equal_nan=True
    )  # The values are solved from sums.
    assert first["provenance"] == one["provenance"]
    for name, value in one["anatomy"].items():
        np.testing.assert_allclose(first["anatomy"][name], value, rtol=1e-11)


def test_shared_measures_are_those_of_one_process_bit_for_bit(found):
    """Per-sample figures are gathered in order and added once."""
    one, (first, _) = found
    assert first["exact"] == one["exact"]


def test_shared_sums_of_a_fit_give_the_values_of_one_process(found):
    """The sums differ in the last digit of fp64, the solution by that times the condition of a ridge (1e6), in fp32."""
    one, (first, _) = found
    assert first["maps"] == one["maps"]
    np.testing.assert_allclose(first["errors"], one["errors"], rtol=1e-5)
    assert one["swept"].keys() == first["swept"].keys() and one["swept"]
    for layer, values in one["swept"].items():
        for name, value in values.items():
            assert float((first["swept"][layer][name] - value).abs().max()) <= 1e-5 * float(value.abs().max()), (layer, name)


def test_shared_thinning_sets_the_zeros_of_one_process(found):
    """No two scores of these random weights are so close that the last digit of a sum could swap them."""
    one, (first, _) = found
    assert len(one["thinned"]) == len(first["thinned"]) > 1
    for (values, records), (shared, others) in zip(one["thinned"], first["thinned"], strict=True):
        assert values.keys() == shared.keys() and values
        for name, value in values.items():
            assert torch.equal(shared[name] == 0, value == 0), name
            assert float((shared[name] - value).abs().max()) <= 1e-5 * float(value.abs().max()), name
        for ours, theirs in zip(map(json.loads, records), map(json.loads, others), strict=True):
            exact, close = ("layer", "role", "n_weights", "n_zeros"), ("asked", "error")
            assert [theirs[name] for name in exact] == [ours[name] for name in exact]
            assert [theirs.get(name) or 0 for name in close] == pytest.approx([ours.get(name) or 0 for name in close], rel=1e-5)


@pytest.mark.parametrize("which, n_samples", [(0, 5), (1, 1)])
def test_the_gradient_of_a_shared_step_is_that_of_one_process(found, which, n_samples):
    """fp32 gradients are added in another order: rounding of 1e-7 of the largest, some times over. No sample, no weight."""
    (losses, gradients), (shared_losses, shared) = found[0]["gradients"][which], found[1][0]["gradients"][which]
    torch.testing.assert_close(shared_losses, losses, rtol=1e-6, atol=0)
    assert gradients.keys() == shared.keys()
    for name, value in gradients.items():
        assert float((shared[name] - value).abs().max()) <= 2e-6 * float(value.abs().max()), name


def test_shared_training_takes_the_steps_of_one_process(found):
    """Same steps, tokens and learning rates exactly; values up to fp32 rounding that AdamW carries along eight steps."""
    one, (first, _) = found
    curve, shared = one["result"]["curve"], first["result"]["curve"]
    assert {**first["result"], "curve": ()} == {**one["result"], "curve": ()}
    assert [(p["step"], p["tokens"], p["lr"]) for p in shared] == [(p["step"], p["tokens"], p["lr"]) for p in curve]
    for name in ("loss", "grad_norm", "validation", "quality"):
        torch.testing.assert_close([p[name] for p in shared[1:]], [p[name] for p in curve[1:]], rtol=1e-4, atol=0)
    for name, value in one["trained"].items():
        assert float((first["trained"][name] - value).abs().max()) <= 2e-5 * float(value.abs().max()), name


# -- what goes wrong -----------------------------------------------------------------------------------------------------

TROUBLE = """
import os, signal, sys, time
from datetime import timedelta
import torch
import shoal.engine.workers
from shoal.engine.workers import LostWorker, join
shoal.engine.workers.LONGEST_SHARE = timedelta(seconds=3)
job, one = join(), {"a": torch.ones(2, dtype=torch.float64)}
assert job.sum(one)["a"].tolist() == [2.0, 2.0]
assert job.gather(["first", "third"] if job.is_first else ["second"]) == ["first", "second", "third"]
assert job.from_first(lambda: {"made by": job.rank}) == {"made by": 0}
assert job.on_first(lambda: job.rank) == (0 if job.is_first else None)
def refuse():
    raise ValueError("too little text")
try:
    job.from_first(refuse)
except ValueError as error:
    print("refused:", error)
if job.rank == 1:
    DOES
try:
    job.sum(one)
except LostWorker as error:
    print(error)
    sys.exit(7)
"""


@pytest.mark.parametrize(
    "does, code",
    [
        pytest.param("os.kill(os.getpid(), signal.SIGKILL)", -9, id="dies"),
        pytest.param("time.sleep(12); os._exit(8)", 8, id="hangs", marks=pytest.mark.slow),
    ],
)
def test_a_lost_worker_is_an_error_of_the_others_and_not_a_wait(does, code):
    first, second = launch(2, "-c", TROUBLE.replace("DOES", does))
    assert (first.code, second.code) == (7, code), first.err + second.err
    assert "worker 0 of 2 lost the others while adding sums" in first.out
    assert "refused: too little text" in first.out and "refused: too little text" in second.out
    assert code == -9 or first.seconds < second.seconds


@pytest.mark.slow  # Two processes.
def test_the_first_process_speaks_at_once_and_the_others_only_if_they_are_left_alone():
    """Also: a verb that several processes cannot share is refused by all of them."""
    first, second = launch(2, "-m", "shoal", "stability", "a", "b")
    said = "error: stability runs in one process, not in 2; compress, eval, grow, heal, plan, prune, run, scan share work"
    assert (first.code, second.code) == (2, 2)
    assert (first.out, second.out) == ("", "")
    assert first.err == f"shoal: {said}\n"
    assert second.err == f"shoal: rank 1: {said}\n"
    assert second.seconds - first.seconds > 4  # A launcher would have ended it meanwhile.
