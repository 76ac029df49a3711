"""Progress in a log: no stage is silent for more than twenty seconds, whatever it reports; the time left is what is left."""

import builtins
import re
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import cli
from shoal.cli.expected import BELIEF, Expected
from shoal.words.progress import (
    EVERY,
    LogLines,
    clock,
    counted,
    duration,
    each,
    listener,
    megabytes,
    numbered,
    over_passes,
    stage_in,
    stage_of,
    tell,
    told,
    watched,
)


class Clock:
    """Time that passes only when it is told to; the watch looks once a second, as the thread does."""

    def __init__(self):
        self.seconds, self.said = 0.0, []
        self.lines = LogLines(lambda line: self.said.append((self.seconds, line)), now=lambda: self.seconds)

    def wait(self, seconds):
        stop = self.seconds + seconds
        while self.seconds < stop:
            self.seconds = min(stop, self.seconds + 1.0)
            self.lines.still()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(["scan", "guard", "fit"]), st.floats(0.01, 300), st.integers(1, 9)), max_size=12))
def test_never_more_than_twenty_seconds_between_lines(stages):
    clock_ = Clock()
    for what, seconds, total in stages:
        for done in range(1, total + 1):
            clock_.wait(seconds)
            clock_.lines(what, done, total)
    clock_.wait(100)
    times = [0.0, *(at for at, _ in clock_.said)]
    assert all(b - a <= 20 for a, b in zip(times, times[1:], strict=False)) and clock_.seconds - times[-1] <= 20


def test_the_time_left_is_exact_where_steps_take_equally_long():
    clock_ = Clock()
    for done in range(41):
        clock_.lines("evaluate", done, 40)
        clock_.wait(10)
    for at, line in clock_.said[1:40]:
        left = re.search(r"about (\d+) (s|min) left", line)
        assert left, line
        assert abs(float(left[1]) * (60 if left[2] == "min" else 1) - (400 - at)) <= 30
    assert clock_.said[0][1] == "[0:00:00] evaluate: 0 of 40" and clock_.said[40][1] == "[0:06:40] evaluate: 40 of 40, done"


def test_a_fast_stage_says_little():
    clock_ = Clock()
    for done in range(1000):
        clock_.wait(0.02)
        clock_.lines("scan", done + 1, 1000)
    assert len(clock_.said) <= 4


def test_steps_that_begin_again_are_measured_anew():
    """The same work on the next candidate: what the first took does not shorten the second."""
    clock_ = Clock()
    for _ in range(2):
        for done in range(1, 4):
            clock_.wait(30)
            clock_.lines("repair a candidate", done, 3)
    assert "[0:02:45] repair a candidate: 2 of 3, about 15 s left" in [line for _, line in clock_.said]


def test_work_that_comes_again_and_again_is_part_of_the_time_left():
    """Planted: 40 steps of a second, and behind every fifth one a validation of ten; 120 seconds in all."""
    clock_ = Clock()
    for step in range(1, 41):
        clock_.wait(1)
        clock_.lines("train", step, 40)
        for k in range(5 if step % 5 == 0 else 0):
            clock_.lines("validate", k, 5)
            clock_.wait(2)
    assert clock_.seconds == 120 and len(clock_.said) <= 2 + 120 / 10
    left = [(at, re.search(r"train: .* about (\d+) s left", line)) for at, line in clock_.said if at > 20]
    assert sum(found is not None for _, found in left) >= 3
    assert all(abs(float(found[1]) - (120 - at)) <= 12 for at, found in left if found), clock_.said


def test_work_that_comes_again_says_its_beginning_and_its_end_once():
    clock_ = Clock()
    for _ in range(40):
        for done in range(3):
            clock_.lines("refit a layer", done, 2)
            clock_.wait(1)
    lines = [line for _, line in clock_.said]
    ends = sum("2 of 2, done" in line for line in lines)
    assert 1 <= ends <= 40 * 3 / EVERY, lines
    assert len(lines) <= 2 + 40 * 3 / EVERY, lines


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(1, 2000), min_size=1, max_size=6), st.floats(0.05, 20))
def test_the_whole_is_corrected_by_the_stages_that_are_done(expected, factor):
    """All stages take the same multiple of what was expected, as where the pace was measured beside other work."""
    seconds, every = 0.0, sum(expected)
    whole = Expected(expected, now=lambda: seconds)
    for k, one in enumerate(expected, 1):
        whole.begin(k)
        done = sum(expected[: k - 1])
        doubt = BELIEF * every / (done + BELIEF * every)  # What is left of the wrong pace: all of it at first.
        assert abs(whole.whole - factor * every) == pytest.approx((every - done) * abs(factor - 1) * doubt, abs=1e-6 * every)
        seconds += factor * one
        assert whole.whole >= whole.taken == seconds


def test_the_whole_is_what_was_expected_where_it_comes_so():
    seconds = 0.0
    whole = Expected([30, 0, 90], now=lambda: seconds)
    assert str(whole) == "0 of ~2 min" and whole.whole == 120
    seconds = 30.0
    whole.begin(stage_in("stage 3 of 3, evaluate"))
    assert whole.whole == 120
    seconds = 150.0
    assert whole.whole == 150 and str(whole) == "2 of ~2 min"
    assert str(Expected([20, 20])) == "", "a matter of seconds"


def test_a_step_that_takes_longer_than_its_share_is_said_to():
    clock_ = Clock()
    for done in range(5):
        clock_.lines("fit", done, 6)
        clock_.wait(1)
    clock_.wait(60)
    lines = [line for _, line in clock_.said]
    assert lines[-1].endswith("fit: 4 of 6, at work for 56 s on a step that takes longer than those before"), lines


def test_parts_of_work_are_told_as_a_whole():
    found = []
    with watched(lambda *said: found.append(said)):
        written = megabytes("write", 2_500_000)
        for n_bytes in (900_000, 900_000, 700_000):
            written(n_bytes)
        assert found == [("write (MB)", 0, 3), ("write (MB)", 0, 3), ("write (MB)", 1, 3), ("write (MB)", 3, 3)]
        found.clear()
        assert list(each("validate", "ab")) == ["a", "b"] and found == [("validate", n, 2) for n in range(3)]
        found.clear()
        step = over_passes("paths", 3)
        for _ in range(4):
            step(None)
        assert found == [("paths", n, 3) for n in (1, 2, 3, 3)]


def test_another_thread_tells_who_watched_when_it_was_made():
    found = []
    with watched(lambda *said: found.append(said)):
        told_there = listener()
    worker = threading.Thread(target=lambda: (tell("lost", 1, 1), told_there("fetch", 1, 2)))
    worker.start()
    worker.join()
    assert found == [("fetch", 1, 2)]


def test_a_long_step_without_a_report_is_at_work():
    clock_ = Clock()
    clock_.wait(40)
    clock_.lines("generate", 0, 1)
    clock_.wait(40)
    lines = [line for _, line in clock_.said]
    assert lines[0] == "[0:00:15] open model and text, at work for 15 s" and "[0:00:40] generate" in lines
    assert any("generate, at work for 30 s" in line for line in lines)


def test_work_without_steps_is_said_where_it_takes_long():
    clock_ = Clock()
    clock_.lines.begin("write the file")
    clock_.wait(3)
    assert clock_.said == []
    clock_.wait(37)
    assert [line for _, line in clock_.said] == [
        "[0:00:15] write the file, at work for 15 s", "[0:00:30] write the file, at work for 30 s"
    ]  # fmt: skip


def test_the_thread_watches_and_ends(monkeypatch):
    import shoal.words.progress as progress

    monkeypatch.setattr(progress, "SILENCE", 0.5)
    said = []
    with LogLines(said.append):
        import time

        time.sleep(2.5)
    n = len(said)
    time.sleep(1.2)
    assert n >= 1 and len(said) == n


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "1 s"), (40, "40 s"), (99, "99 s"), (150, "2 min"), (3000, "50 min"), (9000, "2.5 h")]
)
def test_durations(seconds, said):
    assert duration(seconds) == said


def test_the_clock():
    assert [clock(s) for s in (0, 61, 3661)] == ["0:00:00", "0:01:01", "1:01:01"]


def test_a_stage_says_which_of_how_many_it_is():
    said = []
    with watched(lambda *one: said.append(one)):
        with stage_of(2, 6), stage_of(1, 3):
            tell("scan", 1, 4)
        with stage_of(1, 1):
            tell("scan", 1, 4)
    tell("nobody hears it", 1, 1)
    assert said == [("stage 2 of 6, stage 1 of 3, scan", 1, 4), ("scan", 1, 4)]


def test_who_watches_inside_is_told_alone_even_where_the_block_fails():
    outer, inner = [], []
    with watched(lambda what, *_: outer.append(what)):
        with pytest.raises(ValueError), watched(lambda what, *_: inner.append(what)):
            tell("inside", 1, 1)
            raise ValueError
        tell("outside", 1, 1)
    assert (outer, inner) == (["outside"], ["inside"])


def test_many_small_passes_are_said_as_far_as_their_whole_is():
    found, n_sets = [], 0
    with watched(lambda *said: found.append(said)):
        with counted(lambda: n_sets, 50):
            for n_sets in (29, 57):  # noqa: B007 -- what is counted
                tell("greedy", 1, 1)
        with counted(lambda: 0, 9):
            pass
    assert found == [("greedy", 29, 50), ("greedy", 50, 50), ("greedy", 50, 50)]


def test_parts_that_are_not_asked_for_are_not_counted():
    said = []
    with watched(lambda what, *_: said.append(what)):
        for one in (*numbered(True, False, True), *numbered(False, True, False)):
            with one:
                tell("it", 1, 1)
    assert said[0] == "stage 1 of 2, it" and said[2] == "stage 2 of 2, it" and said[4] == "it"


def test_a_notebook_is_told_and_a_program_is_not(monkeypatch, capsys):
    """In a notebook the watch runs while the block does, so that a long step is not silent there, either."""

    def watches():
        return [one for one in threading.enumerate() if one.name == "progress"]

    with told(None):
        tell("scan", 1, 4)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(builtins, "__IPYTHON__", True, raising=False)
    with told(None):
        tell("scan", 1, 4)
        assert len(watches()) == 1
    assert not watches() and "scan: 1 of 4" in capsys.readouterr().out
    with told(print):
        tell("scan", 1, 4)
    assert capsys.readouterr().out == "scan 1 4\n"


def test_a_verb_opens_its_model_once():
    """A second block of progress said, where its first stage was long, that the model was being opened."""
    for file in Path(cli.__file__).parent.glob("*.py"):
        for one in re.split(r"\n(?=def |class |    def )", file.read_text()):
            assert one.count(".progress()") <= 1, (file.name, one.splitlines()[0])
