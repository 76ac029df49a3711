"""A slow machine that takes no time: a clock that only slow work moves, and everything that the command says beside it.

Slow are a layer's forward, a linear solve, and a file of weights or text that is opened. The watch of the log looks whenever
the clock moves, as its thread does, so that what is said when is the same in every run.
"""

import builtins
import traceback
from contextlib import contextmanager
from unittest import mock

import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from shoal.cli.console import Screen
from shoal.run import job
from shoal.words.progress import LogLines

LAYER, SOLVE, FILE = 1.0, 2.0, 4.0
"""Seconds: a batch takes six in the layers of the tiny model."""

TOKENS_PER_BATCH = 64
"""Four samples of the tests, so that a pass has several batches."""

SOLVES = ("cholesky", "cholesky_ex", "eigh", "eigvalsh", "svd", "solve", "lstsq", "inv", "qr")
SLOW_FILES = (".safetensors", ".gguf", ".jsonl", ".txt", ".gz", ".csv", ".parquet")


class SlowMachine:
    """What the clock shows, what was said when, and where it was silent.

    Attributes:
        lines: (seconds, line) of the log and of what verbs say.
        steps: (seconds, what, done, total) of everything that was reported.
    """

    def __init__(self):
        self.seconds, self.lines, self.steps = 0.0, [], []
        self.unsaid, self.unreported = [], []
        self._watching, self._said, self._reported = None, 0.0, 0.0

    def take(self, seconds):
        """So much time goes by."""
        self.seconds += seconds
        if self._watching is not None:
            self._watching.still()
        if self.seconds - self._said > 20:
            self.unsaid.append((self.seconds - self._said, _where()))
        if self.seconds - self._reported > 20:
            self.unreported.append((self.seconds - self._reported, _where()))

    def say(self, line):
        self._said = self.seconds
        self.lines.append((self.seconds, line))

    def report(self, what, done, total):
        self._reported = self.seconds
        self.steps.append((self.seconds, what, done, total))

    @contextmanager
    def running(self):
        """While the block runs, work takes the machine's time."""
        patches = [
            mock.patch.object(LlamaDecoderLayer, "forward", self._slowly(LlamaDecoderLayer.forward, LAYER)),
            *(mock.patch.object(torch.linalg, name, self._slowly(getattr(torch.linalg, name), SOLVE)) for name in SOLVES),
            mock.patch.object(job, "TOKENS_PER_BATCH", TOKENS_PER_BATCH),
            mock.patch.object(builtins, "open", self._opening(builtins.open)),
            mock.patch.dict(LogLines.__init__.__kwdefaults__, now=lambda: self.seconds),
            mock.patch.object(LogLines, "__enter__", lambda lines: self._watch(lines)),
            mock.patch.object(LogLines, "__exit__", lambda *_: self._watch(None)),
            mock.patch.object(LogLines, "__call__", self._telling(LogLines.__call__)),
            mock.patch.object(Screen, "_line", self._saying(Screen._line)),
            mock.patch.object(Screen, "say", self._saying(Screen.say)),
        ]
        for one in patches:
            one.start()
        try:
            yield self
        finally:
            for one in reversed(patches):
                one.stop()

    def _slowly(self, function, seconds):
        def slow(*args, **kwargs):
            found = function(*args, **kwargs)
            self.take(seconds)
            return found

        return slow

    def _opening(self, function):
        def slow(file, *args, **kwargs):
            found = function(file, *args, **kwargs)
            if str(file).endswith(SLOW_FILES):
                self.take(FILE)
            return found

        return slow

    def _telling(self, function):
        def telling(lines, what, done, total):
            self.report(what, done, total)
            function(lines, what, done, total)

        return telling

    def _saying(self, function):
        def saying(screen, text):
            self.say(text)
            function(screen, text)

        return saying

    def _watch(self, lines):
        self._watching = lines
        return lines


def _where():
    """The functions of Shoal that are at work, innermost first."""
    stack = [one for one in reversed(traceback.extract_stack()) if "/src/shoal/" in one.filename]
    return [f"{one.filename.split('/src/shoal/')[1]}:{one.lineno} {one.name}" for one in stack[:7]]
