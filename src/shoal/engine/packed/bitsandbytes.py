"""bitsandbytes: 4 bits as codes of a table of 16 numbers (QLoRA, arXiv 2305.14314), 8 bits as integers with a scale per row.

The table, the largest value of every block and, where these are quantised themselves, their own table lie in the checkpoint.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from shoal.engine.packed.codes import nibbles
from shoal.engine.packed.packing import PackedForm, PackingMethod, Parts

STATES = (".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4")
INT8_MOST = 127.0


def four_bits(parts: Parts, stated: Mapping[str, Any]) -> Tensor:
    """Table entry times the largest absolute value of its block; the higher half of a byte is the first number."""
    state = json.loads(bytes(next(parts[one] for one in STATES if one in parts).tolist()))
    most = parts[".weight.absmax"]
    if ".weight.nested_absmax" in parts:
        inner = parts[".weight.nested_quant_map"].float()[most.long()]
        scale = parts[".weight.nested_absmax"].float()
        most = inner * scale[torch.arange(most.numel()) // state["nested_blocksize"]] + state["nested_offset"]
    codes = nibbles(parts[".weight"].flatten(), high_first=True)[: math.prod(state["shape"])]
    values = parts[".weight.quant_map"].float()[codes]
    return (values * most.float()[torch.arange(codes.numel()) // state["blocksize"]]).view(state["shape"])


def eight_bits(parts: Parts, stated: Mapping[str, Any]) -> Tensor:
    """Integer times the largest absolute value of its row, in units of 127 (LLM.int8(), arXiv 2208.07339)."""
    order = parts.get(".weight_format")
    if order is not None and bool(order.any()):
        raise ValueError("the integers are ordered for a kernel of a card")
    return parts[".weight"].float() * (parts[".SCB"].float() / INT8_MOST)[:, None]


BITSANDBYTES = PackingMethod(
    method="bitsandbytes",
    forms=(
        PackedForm(
            ".weight",
            (".weight.absmax", ".weight.quant_map"),
            four_bits,
            may=(".weight.nested_absmax", ".weight.nested_quant_map", *STATES),
        ),
        PackedForm(".weight", (".SCB",), eight_bits, may=(".weight_format",)),
    ),
)
