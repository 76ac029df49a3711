"""GPTQ (arXiv 2210.17323): integers packed along the inputs, with scale and zero per group of inputs and output."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from shoal.engine.packed.codes import fields
from shoal.engine.packed.packing import PackedForm, PackingMethod, Parts

BITS = (2, 4, 8)
# The first layout stores every zero lowered by one. It is the word that is lowered, so that a zero of 0 borrows from the next
# field; gptqmodel 7.7 writes and reads it so (convert_gptq_v1_to_v2_format_module). The second layout stores zeros as they are.
LOWERED = "gptq"
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
    is_lowered = (stated.get("checkpoint_format") or LOWERED) == LOWERED
    zero_GN = fields(parts[".qzeros"] + (ones(bits) if is_lowered else 0), bits).flatten(-2)
    n_inputs, n_groups = code_KN.shape[0], scale_GN.shape[0]
    group_K = torch.arange(n_inputs) // -(-n_inputs // n_groups) if order is None else order.long()
    return ((code_KN - zero_GN[group_K]).float() * scale_GN[group_K]).T


def ones(bits: int) -> int:
    """The word that holds a one in every field."""
    return sum(1 << start for start in range(0, 32, bits))


GPTQ = PackingMethod(
    method="gptq",
    forms=(PackedForm(".qweight", (".qzeros", ".scales"), grouped, may=(".g_idx",)),),
    refuses=refuses,
)
