"""MXFP4: four-bit floating numbers in blocks of 32 with one power of two each (OCP Microscaling Formats, version 1.0)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from shoal.engine.packed.codes import fp4, powers
from shoal.engine.packed.packing import PackedForm, PackingMethod, Parts


def experts(parts: Parts, stated: Mapping[str, Any]) -> Tensor:
    """Experts of gpt-oss: stored (E, outputs, blocks, 16 bytes), and (E, inputs, outputs) where they are plain."""
    return (fp4(parts["_blocks"]) * powers(parts["_scales"])[..., None]).flatten(-2).transpose(-1, -2)


MXFP4 = PackingMethod(method="mxfp4", forms=(PackedForm("_blocks", ("_scales",), experts, weight=""),))
