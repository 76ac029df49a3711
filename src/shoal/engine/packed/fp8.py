"""fp8: eight-bit floating numbers with a scale per block (DeepSeek-V3, arXiv 2412.19437), per row, or for all."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from shoal.engine.packed.codes import powers, spread
from shoal.engine.packed.packing import PackedForm, PackingMethod, Parts


def times_scale(parts: Parts, stated: Mapping[str, Any]) -> Tensor:
    """Number times scale; what is stored as the "inverse" scale is what one multiplies by."""
    codes = parts[".weight"]
    scale = parts[".weight_scale_inv"] if ".weight_scale_inv" in parts else parts[".weight_scale"]
    if scale.element_size() == 1:  # E8M0: a power of two
        scale = powers(scale)
    block = stated.get("weight_block_size")
    return codes.float() * spread(scale, codes.shape, [(block[0], block[1])] if block else ())


FP8 = PackingMethod(
    method="fp8",
    forms=(PackedForm(".weight", (".weight_scale_inv",), times_scale), PackedForm(".weight", (".weight_scale",), times_scale)),
    unused=(".activation_scale", ".input_scale", ".k_scale", ".v_scale"),
)
