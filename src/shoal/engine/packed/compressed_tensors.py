"""compressed-tensors: integers or eight-bit floating numbers with scales, integers packed in words, four-bit floating numbers.

Which of them a map is stored in is read from its tensors: groups of maps may differ within one checkpoint.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shoal.engine.packed.codes import fields, fp4, powers, spread
from shoal.engine.packed.packing import PackedForm, PackingMethod, Parts

BITS = (2, 4, 8)
FP4_GROUPS = (16, 32)  # These are the numbers per scale of NVFP4 and of MXFP4.
SPARSE = ("marlin-24", "sparse-24-bitmask", "sparse-bitmask", "dense-sparse")


def refuses(stated: Mapping[str, Any]) -> str | None:
    sparse = (stated.get("sparsity_config") or {}).get("format", "dense")
    found = [one for one in (stated.get("format"), sparse) if one in SPARSE]
    return f"format {found[0]!r} leaves zeros out, which is not undone here" if found else None


def scaled(parts: Parts, stated: Mapping[str, Any]) -> Tensor:
    """(code - zero) times scale of its row, group or block."""
    codes = parts[".weight"]
    zero = parts.get(".weight_zero_point")
    return _scaled(codes.float(), parts, stated, None if zero is None else zero.float())


def packed(parts: Parts, stated: Mapping[str, Any]) -> Tensor:
    """Integers out of words, or four-bit floating numbers out of bytes, times scale."""
    words = parts[".weight_packed"]
    if words.dtype == torch.uint8:
        values, scale = fp4(words), _scale(parts)
        if not any(scale.shape[1] * size == values.shape[1] for size in FP4_GROUPS):
            raise ValueError(f"{scale.shape[1]} scales for {values.shape[1]} four-bit numbers in a row")
        whole = parts[".weight_global_scale"].float() if ".weight_global_scale" in parts else torch.ones(())
        return values * spread(scale / whole, values.shape)
    n, k = (int(one) for one in parts[".weight_shape"])
    bits = next((one for one in BITS if -(-k // (32 // one)) == words.shape[1]), None)
    if bits is None:
        raise ValueError(f"{words.shape[1]} words for {k} numbers; known: {', '.join(map(str, BITS))} bits")
    codes, zero, middle = fields(words, bits).flatten(-2)[:, :k].float(), parts.get(".weight_zero_point"), 2 ** (bits - 1)
    if zero is None:
        shift = torch.full((1, 1), float(middle))
    elif zero.dtype == torch.int32:  # The zeros are packed as the codes are, along the outputs.
        shift = fields(zero.T, bits).flatten(-2).T[:n].float()
    else:
        shift = zero.float() + middle
    return _scaled(codes, parts, stated, shift)


def _scaled(codes: Tensor, parts: Parts, stated: Mapping[str, Any], zero: Tensor | None) -> Tensor:
    scale, order, blocks = _scale(parts), parts.get(".weight_g_idx"), _blocks(stated)
    if order is not None and bool((order >= 0).all()):  # Inputs are grouped in the order of their importance.
        at = order.long()
        return (codes - (0 if zero is None else zero[:, at] if zero.numel() > 1 else zero)) * scale[:, at]
    shift = torch.zeros(()) if zero is None else spread(zero, codes.shape, blocks)
    return (codes - shift) * spread(scale, codes.shape, blocks)


def _scale(parts: Parts) -> Tensor:
    """Scales as numbers; those of the microscaling formats are stored as exponents."""
    scale = parts[".weight_scale"]
    return powers(scale) if scale.dtype == torch.uint8 else scale.float()


def _blocks(stated: Mapping[str, Any]) -> Sequence[tuple[int, int]]:
    """The sizes of blocks that the groups of maps state."""
    groups = (stated.get("config_groups") or {}).values()
    found = [(one.get("weights") or {}).get("block_structure") for one in groups]
    return [(int(one[0]), int(one[1])) for one in found if one]


COMPRESSED_TENSORS = PackingMethod(
    method="compressed-tensors",
    forms=(
        PackedForm(
            ".weight_packed",
            (".weight_scale",),
            packed,
            may=(".weight_shape", ".weight_zero_point", ".weight_g_idx", ".weight_global_scale"),
        ),
        PackedForm(".weight", (".weight_scale",), scaled, may=(".weight_zero_point", ".weight_g_idx")),
    ),
    unused=(
        ".input_scale", ".input_zero_point", ".input_global_scale", ".output_scale", ".output_zero_point",
        ".k_scale", ".v_scale", ".q_scale",
    ),
    refuses=refuses,
)  # fmt: skip
