"""What the methods share: small integers out of words, four-bit floating numbers, scales spread over what they scale."""

from collections.abc import Sequence

import torch
from torch import Tensor

FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The numbers of E2M1 by their lower three bits; the fourth is the sign (OCP Microscaling Formats, version 1.0, table 5)."""


def fields(words: Tensor, bits: int) -> Tensor:
    """Unsigned integers of ``bits`` bits out of 32-bit words, lowest bits first, in a new last dimension; int32."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return (words.to(torch.int32)[..., None] >> shifts) & (2**bits - 1)


def nibbles(packed: Tensor, *, high_first: bool) -> Tensor:
    """Two numbers from 0 to 15 out of each byte, along the last dimension; int64."""
    low, high = packed.long() & 15, packed.long() >> 4
    return torch.stack((high, low) if high_first else (low, high), -1).flatten(-2)


def fp4(packed: Tensor) -> Tensor:
    """The four-bit floating numbers of bytes, the lower half of a byte first; float32, twice as many in the last dimension."""
    table = torch.tensor([*FP4, *(-one for one in FP4)])
    return table[nibbles(packed, high_first=False)]


def powers(exponents: Tensor) -> Tensor:
    """Powers of two from their E8M0 bytes, 2^(e - 127): the exponents of float32 themselves; e = 0 is a subnormal number."""
    raised = exponents.view(torch.uint8).to(torch.int32)
    return torch.where(raised == 0, 1 << 22, raised << 23).view(torch.float32)


def spread(scale: Tensor, shape: Sequence[int], blocks: Sequence[tuple[int, int]] = ()) -> Tensor:
    """Scales at every place of a matrix of N rows and K columns: one for all, one per row, or one per block; float32.

    Args:
        scale: (), (1,), (N,), or (rows of blocks, columns of blocks).
        blocks: sizes of blocks that the config states; blocks that divide the matrix need no statement.
    Raises:
        ValueError: no block size leads from the scales to the matrix.
    """
    n, k = shape
    values = scale.float()
    if values.numel() == 1:
        return values.reshape(1, 1).expand(n, k)
    if values.ndim == 1:
        values = values[:, None]
    rows, columns = values.shape
    sizes = [*blocks, *([(n // rows, k // columns)] if n % rows == 0 and k % columns == 0 else [])]
    for high, wide in sizes:
        if -(-n // high) == rows and -(-k // wide) == columns:
            return values[torch.arange(n) // high][:, torch.arange(k) // wide]
    raise ValueError(f"scales of shape {tuple(scale.shape)} for a matrix of {n} x {k}")
