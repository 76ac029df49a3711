"""How a stage says how far it is, to whom, and how that becomes lines of a log.

Who does some work calls :func:`tell`; who wants to know wraps it in :func:`watched`, so no function between the two passes
anything on. Watchers stack up: a stage puts its number before whatever is told inside it.
"""

import builtins
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from types import TracebackType
from typing import Protocol, Self, TypeVar

Progress = Callable[[str, int, int], None]
"""Called with (what, steps done, steps in all)."""

EVERY = 10.0
"""Seconds between two lines of one stage."""

MEGABYTE = 10**6

OPENING = "open model and text"
"""What a command does before its first stage."""

SILENCE = 15.0
"""Seconds after which a stage that reports nothing is said to be at work still; 20 at most pass between two lines."""


Item = TypeVar("Item")


class Indexed(Protocol):
    """Something with a number, such as a batch."""

    @property
    def index(self) -> int: ...


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


_WATCHERS: ContextVar[Progress] = ContextVar("watchers", default=silent)


def tell(what: str, done: int, total: int) -> None:
    """Say how far some work is to whoever watches the job."""
    _WATCHERS.get()(what, done, total)


def each_batch(what: str, n: int) -> Callable[[Indexed], None]:
    """What a pass calls with each of its ``n`` finished batches."""
    return lambda batch: tell(what, batch.index + 1, n)


def each(what: str, items: Sequence[Item]) -> Iterator[Item]:
    """The items in turn; how many of them are done is told before each, and behind the last."""
    for done, one in enumerate(items):
        tell(what, done, len(items))
        yield one
    tell(what, len(items), len(items))


def over_passes(what: str, n: int) -> Callable[[Indexed], None]:
    """What passes over one text call with each of their finished batches, ``n`` in all of them together."""
    done = 0

    def more(batch: Indexed) -> None:
        nonlocal done
        done += 1
        tell(what, min(done, n), n)

    return more


def listener() -> Progress:
    """Whoever watches now. Other threads call it, in which :func:`tell` would reach nobody."""
    return _WATCHERS.get()


def megabytes(what: str, n_bytes: int) -> Callable[[int], None]:
    """What calls with the bytes of every further part that it has read or written, ``n_bytes`` in all; told in megabytes."""
    done, total = 0, max(1, -(-n_bytes // MEGABYTE))

    def more(n: int) -> None:
        nonlocal done
        done += n
        tell(f"{what} (MB)", total if done >= n_bytes else done // MEGABYTE, total)

    more(0)
    return more


@contextmanager
def watched(by: Progress) -> Iterator[None]:
    """While the block runs, ``by`` gets what is told, and whoever watched before gets nothing."""
    token = _WATCHERS.set(by)
    try:
        yield
    finally:
        _WATCHERS.reset(token)


@contextmanager
def labelled(label: str) -> Iterator[None]:
    """While the block runs, ``label`` stands before whatever is told."""
    above = _WATCHERS.get()
    with watched(lambda what, done, total: above(f"{label}{what}", done, total)):
        yield


@contextmanager
def counted(done: Callable[[], int], total: int) -> Iterator[None]:
    """While the block runs, whatever is told is as far as ``done`` says, not as far as its own steps; behind it all is done.

    For work in many small passes whose number of steps says nothing of the whole.
    """
    above, last = _WATCHERS.get(), ""

    def tell_whole(what: str, _done: int, _total: int) -> None:
        nonlocal last
        last = what
        above(what, min(done(), total), total)

    with watched(tell_whole):
        yield
    if last:
        above(last, total, total)


def stage_of(k: int, n: int) -> AbstractContextManager[None]:
    """The block is the ``k``-th of ``n`` stages: what it tells is named ``stage 2 of 6, scan``. One alone needs no number."""
    return nullcontext() if n < 2 else labelled(f"stage {k} of {n}, ")


def stage_in(what: str) -> int:
    """The number that :func:`stage_of` put into a name, or 1."""
    found = re.match(r"stage (\d+) of \d+, ", what)
    return int(found[1]) if found else 1


def numbered(*asked: bool) -> tuple[AbstractContextManager[None], ...]:
    """A block for each of some parts of a job, of which those that are asked for are counted."""
    return tuple(stage_of(sum(asked[: k + 1]), sum(asked)) for k in range(len(asked)))


@contextmanager
def told(progress: Progress | None) -> Iterator[None]:
    """The watcher that was asked for; else lines in a notebook, where a cell says nothing else, and whoever watches already.

    The lines come while the block runs, every twenty seconds at least.
    """
    if progress is not None:
        with watched(progress):
            yield
    elif hasattr(builtins, "__IPYTHON__"):
        with LogLines() as lines, watched(lines):
            yield
    else:
        yield


class LogLines:
    """Progress as lines of a log: the time since the start, the stage, how far it is, and how long it will take.

    A line comes when a stage begins, every ten seconds while it reports steps, and when it ends. Work that comes again and
    again, such as the validations of a training, begins and ends once; the training then goes on, and its time left counts them
    in. As a context it also says, after fifteen seconds without a word, that the last stage is still at work: a single step (a
    model being opened, one layer being solved) may take minutes.

    Args:
        write: takes one line; unless given, it is printed where ``sys.stdout`` went when this began.
        now: seconds of a clock that only goes forward.
    """

    def __init__(self, write: Callable[[str], object] | None = None, *, now: Callable[[], float] = time.monotonic) -> None:
        # While a model is opened stdout is turned to stderr, for what other libraries print; these lines are not theirs.
        self._write, self._now = write or partial(print, file=sys.stdout), now
        self._start = now()
        self._what, self._done, self._total = OPENING, 0, 0
        self._began = self._said = self._reported = self._start
        self._first = 0
        self._left: dict[str, tuple[float, int, int, int]] = {}
        self._ended: set[str] = set()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._watch: threading.Thread | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        with self._lock:
            now, is_known = self._now(), what == self._what or what in self._left
            if what != self._what:
                self._left[self._what] = (self._began, self._first, self._done, self._total)
                self._began, self._first, last, of = self._left.get(what, (now, done, done, total))
            else:
                last, of = self._done, self._total
            if done < last or total != of:  # The same work begins anew, on the next candidate perhaps.
                # How long the steps took that were done before the first report is not known, so they do not count.
                self._began, self._first = now, done
            self._what, self._done, self._total, self._reported = what, done, total, now
            is_end = done == total and what not in self._ended and now - self._said >= 1
            if not is_known or now - self._said >= EVERY or is_end:
                self._say(now)
            if done == total:
                self._ended.add(what)

    def begin(self, what: str) -> None:
        """Something without steps is at work; a line comes only where it takes long."""
        with self._lock:
            self._what, self._done, self._total = what, 0, 0
            self._began = self._said = self._reported = self._now()

    def __enter__(self) -> Self:
        self._over.clear()
        self._watch = threading.Thread(target=self._keep_saying, name="progress", daemon=True)
        self._watch.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        if self._watch is not None:
            self._watch.join()

    def still(self) -> None:
        """Say that the stage is at work where nothing has been said for a while."""
        with self._lock:
            now = self._now()
            if now - self._said >= SILENCE:
                self._say(now)

    def _keep_saying(self) -> None:
        while not self._over.wait(1.0):
            self.still()

    def _say(self, now: float) -> None:
        self._said = now
        far = f": {self._done:,} of {self._total:,}" if self._total > 1 else ""
        self._write(f"[{clock(now - self._start)}] {self._what}{far}{self._time(now)}")

    def _time(self, now: float) -> str:
        """What is known of the time that the stage takes; empty where it has only begun."""
        steps, spent, waiting = self._done - self._first, self._reported - self._began, now - self._reported
        left = spent / steps * (self._total - self._done) - waiting if steps > 0 else 0.0
        if self._total and self._done >= self._total:
            return f", done; at work on what follows for {duration(waiting)}" if waiting >= SILENCE else ", done"
        if steps > 0 and spent > 0 and (left > 0 or waiting < SILENCE):
            return f", about {duration(max(1.0, left))} left"
        if steps > 0:
            return f", at work for {duration(waiting)} on a step that takes longer than those before"
        return f", at work for {duration(now - self._began)}" if now - self._began >= SILENCE else ""


def clock(seconds: float) -> str:
    """``0:01:23``."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``: no more precise than a guess is."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
