"""Values to the bytes of a block format and back, through the gguf package. The K formats cannot be written there."""

from typing import Any

import numpy as np

from shoal.engine.gguf_head import Place, block_sizes

KINDS = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
NORMS = "f32"  # llama.cpp wants vectors in single precision.


def kind_number(name: str) -> int:
    """Number of a block format. Raises ValueError for one that cannot be written."""
    if name not in KINDS:
        raise ValueError(
            f"--type {name!r} cannot be written, known: {', '.join(KINDS)}; llama-quantize makes the others of f16"
        )
    return next(number for number, (known, _, _) in block_sizes().items() if known == name.upper())


def fitting_kind(name: str, shape: tuple[int, ...]) -> str:
    """The format for a tensor: single precision for vectors, half where rows are no whole blocks.

    Args:
        shape: contiguous dimension last.
    """
    if len(shape) < 2:
        return NORMS
    _, values, _ = block_sizes()[kind_number(name)]
    return name if shape[-1] % values == 0 else "f16"


def n_bytes_of(kind: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor in a format."""
    _, values, width = block_sizes()[kind_number(kind)]
    return int(np.prod(shape, dtype=np.int64)) // values * width


def encoded(values: np.ndarray[Any, Any], kind: str) -> bytes:
    """Values, fp32, as the bytes of a format."""
    from gguf import GGMLQuantizationType, quants

    return quants.quantize(np.ascontiguousarray(values, dtype=np.float32), GGMLQuantizationType[kind.upper()]).tobytes()


def decoded(raw: bytes, place: Place) -> np.ndarray[Any, Any]:
    """The values of a stored tensor, fp32, contiguous dimension last.

    Raises:
        ValueError: a format that the gguf package cannot unpack.
    """
    from gguf import GGMLQuantizationType, quants

    kind = GGMLQuantizationType(place.kind)
    shape = tuple(reversed(place.shape))
    data = np.frombuffer(raw, dtype=np.uint8)
    if kind.name in ("F32", "F16"):
        return data.view(np.float32 if kind.name == "F32" else np.float16).reshape(shape).astype(np.float32)
    try:
        return quants.dequantize(data.reshape(-1, place.n_bytes // max(1, place.n_values // shape[-1])), kind).reshape(shape)
    except NotImplementedError:
        raise ValueError(f"the tensor {place.name!r} is in {kind.name}, which the gguf package cannot unpack") from None
