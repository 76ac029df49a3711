"""The engine: a decoder that can run any of its layers on any hidden states."""

from shoal.decoder.passes import Observer, run_pass
from shoal.decoder.student import TEACHER, Attached, Student
from shoal.decoder.view import DecoderView, Reading, Tap

__all__ = ["TEACHER", "Attached", "DecoderView", "Observer", "Reading", "Student", "Tap", "run_pass"]
