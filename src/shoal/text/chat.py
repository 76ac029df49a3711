"""Turns of a chat as one text: through the tokenizer's chat template, or as plain paragraphs where it has none.

A template is a program that came with the model. It runs in transformers' sandbox; whatever it does wrong, and whatever it
takes too long for, ends in one line.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from shoal.text.rows import Chat, Turn

MOST_SECONDS = 20.0
"""Longest that a template may take for one row; a real one takes a thousandth of a second."""


def chat_of(tokenizer: Any) -> Chat:
    """How a tokenizer writes turns.

    With a chat template: its text. A template that refuses a system's turn (Gemma's does) gets it as the beginning of the first
    user's. Without one, as of a base model: what is said, turn by turn, as paragraphs; a base model has no marks for roles.
    """
    if not getattr(tokenizer, "chat_template", None):
        return lambda turns: "\n\n".join(turn["content"].strip() for turn in turns if turn["content"].strip())

    return lambda turns: as_taken(tokenizer, turns)[1]


def as_taken(tokenizer: Any, turns: list[Turn]) -> tuple[list[Turn], str]:
    """Turns as the chat template takes them, and what it writes of them.

    Raises:
        ValueError: it refuses them, also with the system's turn in front of the first user's.
    """
    try:
        return turns, rendered(tokenizer, turns)
    except ValueError:
        folded = without_system(turns)
        if folded is None:
            raise
        try:
            return folded, rendered(tokenizer, folded)
        except ValueError:
            pass
        raise


def asked(tokenizer: Any, text: str) -> str | None:
    """A text as what a user says, up to where the answer begins; None without a chat template, or where it refuses that."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        return rendered(tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True)
    except ValueError:
        return None


def asked_by(tokenizer: Any, turns: list[Turn]) -> str:
    """Turns up to where the answer begins. A template that refuses a system's turn gets it in front of the first user's.

    Raises:
        ValueError: the template refuses them.
    """
    try:
        return rendered(tokenizer, turns, add_generation_prompt=True)
    except ValueError:
        folded = without_system(turns)
        if folded is None:
            raise
        return rendered(tokenizer, folded, add_generation_prompt=True)


def without_system(turns: list[Turn]) -> list[Turn] | None:
    """The turns with the system's text in front of the first user's; None where they do not begin with these two."""
    if len(turns) < 2 or turns[0]["role"] != "system" or turns[1]["role"] != "user":
        return None
    first = {**turns[1], "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}
    return [first, *turns[2:]]


def rendered(tokenizer: Any, turns: list[Turn], **how: Any) -> str:
    """What the chat template writes of turns. Raises ValueError, in one line, for whatever it does wrong."""
    try:
        with deadline(MOST_SECONDS):
            text = tokenizer.apply_chat_template(turns, tokenize=False, **how)
    except MemoryError:
        raise ValueError("the chat template runs out of memory on these messages; use another template") from None
    except Exception as error:  # A template may do anything, such as divide by zero or recurse.
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"the chat template refuses these messages ({said})") from None
    if not isinstance(text, str):
        raise ValueError(f"the chat template makes a {type(text).__name__} of these messages, no text; use another template")
    return text


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the block when it takes longer; only the main thread can be stopped so, others run on."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise TimeoutError(f"it takes more than {seconds:.0f} seconds for one row")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
