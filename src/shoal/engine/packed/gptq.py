"""GPTQ (arXiv 2210.17323): integers packed along the inputs, with scale and zero per group of inputs and output."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from shoal.engine.packed.codes import fields
from shoal.engine.packed.packing import PackedForm, PackingMethod, Parts

BITS = (2, 4, 8)
LOWERED = "gptq"  # This layout stores every zero lowered by one, modulo the number of codes; the second one as it is.
LAYOUTS = (LOWERED, "gptq_v2")


def refuses(stated: Mapping[str, Any]) -> str | None:
    layout = stated.get("checkpoint_format") or LOWERED
    if layout not in LAYOUTS:
        return f"checkpoint_format {layout!r} is ordered for one kernel, known: {', '.join(LAYOUTS)}"
    return None if stated.get("bits") in BITS else f"bits={stated.get('bits')!r}, known: {', '.join(map(str, BITS))}"


def grouped(parts: Parts, stated: Mapping[str, Any]) -> Tensor:
    """(code - zero) times scale, each of the group that the input is in; (N outputs, K inputs)."""
    words, scale_GN = parts[".qweight"], parts[".scales"].float()
    order = parts.get(".g_idx")
    # Some maps may have another number of bits.
    bits = int(stated["bits"]) if order is None else 32 * words.shape[0] // max(order.numel(), 1)
    if bits not in BITS:
        raise ValueError(f"packed in {bits} bits, known: {', '.join(map(str, BITS))}")
    code_KN = fields(words.T, bits).flatten(-2).T
    zero_GN = fields(parts[".qzeros"], bits).flatten(-2)
    if (stated.get("checkpoint_format") or LOWERED) == LOWERED:
        zero_GN = (zero_GN + 1) & (2**bits - 1)
    n_inputs, n_groups = code_KN.shape[0], scale_GN.shape[0]
    group_K = torch.arange(n_inputs) // -(-n_inputs // n_groups) if order is None else order.long()
    return ((code_KN - zero_GN[group_K]).float() * scale_GN[group_K]).T


GPTQ = PackingMethod(
    method="gptq",
    forms=(PackedForm(".qweight", (".qzeros", ".scales"), grouped, may=(".g_idx",)),),
    refuses=refuses,
)
