"""Text that strangers wrote, without what a terminal, a page or a card would act on instead of showing it."""

import re

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
"""What nobody may get: control characters but tab and line feed, marks that turn the direction of the text behind them, halves
of surrogate pairs, and what is no character."""


def clean(text: str) -> str:
    """Text with U+FFFD in place of each such character."""
    return CONTROL.sub("\ufffd", text)
