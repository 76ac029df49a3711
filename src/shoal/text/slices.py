"""Which slice a document belongs to: decided by a hash of its own text and by nothing else.

So no document is in two slices, a copy lands where its original is (white space apart), and neither the seed, nor the
file it came from, nor the other documents can move it. Four slices: ``calibration`` for measuring and fitting, ``training``,
``selection`` (tournament, early stopping, λ) and ``evaluation`` (reported, never chosen on).
"""

import hashlib
from collections.abc import Mapping

from shoal.words.records import nearest

# Shares of the documents, in this order; they sum to 1.
SLICE_SHARES: Mapping[str, float] = {"calibration": 0.25, "training": 0.55, "selection": 0.10, "evaluation": 0.10}


def content_digest(text: str) -> bytes:
    """16 bytes that identify a document; runs of white space count as one space, the ends not at all."""
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()


def slice_of(digest: bytes, shares: Mapping[str, float] = SLICE_SHARES) -> str:
    """The slice of a document, from its digest: the hash as a number in [0, 1), against the running sum of the shares."""
    place = int.from_bytes(digest[:8], "big") / 2**64
    names = list(shares)
    bound = 0.0
    for name in names[:-1]:
        bound += shares[name]
        if place < bound:
            return name
    return names[-1]


def order_key(digest: bytes, seed: int) -> bytes:
    """The key that sorts documents into the shuffle of ``seed``; a document's key does not depend on the others."""
    return hashlib.blake2b(digest, digest_size=8, key=str(seed).encode()).digest()


def check_slice(name: str) -> None:
    """Raises ValueError for a name that is not one of the four slices."""
    if name not in SLICE_SHARES:
        raise ValueError(f"unknown slice {name!r}; {nearest(name, SLICE_SHARES)}")
