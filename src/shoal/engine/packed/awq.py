"""AWQ (arXiv 2306.00978): four-bit integers packed along the outputs in an order of their own, scale and zero per group."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from shoal.engine.packed.codes import fields
from shoal.engine.packed.packing import PackedForm, PackingMethod, Parts

BITS = 4
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbouring outputs lies in each four bits of a word, lowest bits first."""


def refuses(stated: Mapping[str, Any]) -> str | None:
    bits, version = stated.get("bits", stated.get("w_bit", BITS)), str(stated.get("version", "gemm")).lower()
    if bits != BITS:
        return f"bits={bits!r}, known: {BITS}"
    return None if version == "gemm" else f"version {version!r}, known: gemm"


def grouped(parts: Parts, stated: Mapping[str, Any]) -> Tensor:
    """(code - zero) times scale, each of the group that the input is in; (N outputs, K inputs)."""
    code_KN, zero_GN = _ordered(parts[".qweight"]), _ordered(parts[".qzeros"])
    per_group = -(-code_KN.shape[0] // zero_GN.shape[0])
    scale_KN = parts[".scales"].float().repeat_interleave(per_group, 0)[: code_KN.shape[0]]
    zero_KN = zero_GN.repeat_interleave(per_group, 0)[: code_KN.shape[0]]
    return ((code_KN - zero_KN).float() * scale_KN).T


def _ordered(words: Tensor) -> Tensor:
    found = fields(words, BITS)
    return found[..., torch.tensor([ORDER.index(i) for i in range(len(ORDER))])].flatten(-2)


AWQ = PackingMethod(method="awq", forms=(PackedForm(".qweight", (".qzeros", ".scales"), grouped),), refuses=refuses)
