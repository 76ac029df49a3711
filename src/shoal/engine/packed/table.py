"""The methods whose weights can be unpacked, by name. A new one is one file and one line here."""

from shoal.engine.packed.awq import AWQ
from shoal.engine.packed.bitsandbytes import BITSANDBYTES
from shoal.engine.packed.compressed_tensors import COMPRESSED_TENSORS
from shoal.engine.packed.fp8 import FP8
from shoal.engine.packed.gptq import GPTQ
from shoal.engine.packed.mxfp4 import MXFP4
from shoal.engine.packed.packing import PackingMethod

PACKINGS: dict[str, PackingMethod] = {one.method: one for one in (BITSANDBYTES, FP8, MXFP4, COMPRESSED_TENSORS, GPTQ, AWQ)}
