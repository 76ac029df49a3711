"""The format ``plain``: a quantised checkpoint out of its blocks, as a model that can be repaired, healed and quantised again.

The weights are the numbers that the packed ones stand for. What the quantised model computes differs from what these do by the
rounding of its kernels (activations in 8 bits, products in half precision), so their difference is measured in units of the
spread of the logits. Weights read in a wrong order change more than rounding does.
"""

from pathlib import Path
from typing import Any

from shoal.export.exporter import Exported, Exporter, Options, StudentFolder
from shoal.words.reading import read_json

DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
# The limit is a root mean square, in units of the spread of the logits. Models that have nothing in common differ by the square
# root of two, and half of that is too much. On SmolLM2 rounding gave 0.06 in four bits, and 0.26 in eight, whose kernels round
# activations, too; neighbours that change places or scales of the next row gave 1.8 to 3.2, on models of three layers 1.0.
MOST_DIFFERENCE = 0.5**0.5
SHARE_OF_MEMORY = 0.7


def refuses(student: StudentFolder, options: Options) -> str | None:
    from shoal.checkpoint.unpack import why_not_unpacked

    if options.kind is not None and options.kind not in DTYPES:
        return f"--type {options.kind!r} is no type of plain weights, known: {', '.join(DTYPES)}"
    return student.untrusted or why_not_unpacked(read_json(student.folder / "config.json"))


def write(student: StudentFolder, out: Path | None, options: Options) -> Exported:
    from shoal.checkpoint.unpack import unpack
    from shoal.engine.open import DTYPES as TORCH

    assert out is not None
    dtype = None if options.kind is None else TORCH[DTYPES[options.kind]]
    done = unpack(student.folder, out, dtype=dtype, trust_remote_code=student.trusts_code)
    text = "every packed weight as the number it stands for; what was plain is as it was"
    return Exported(done, text, ("compress, heal and prune take it; quantise the result again",))


def verify(student: StudentFolder, done: Exported) -> dict[str, Any]:
    """Names and shapes as the config asks; logits against the quantised model where that opens here and both fit in memory.

    Raises:
        ValueError: the folder is no such model, or says something else.
    """
    import torch

    from shoal.engine.model_config import describe
    from shoal.engine.open import load_strictly, refuse_nonfinite
    from shoal.engine.quantised import why_not_openable
    from shoal.engine.source import quantisation
    from shoal.engine.spill import free_memory

    assert done.path is not None
    needed, free = sum(one.stat().st_size for one in done.path.glob("*.safetensors")), free_memory()
    if needed > SHARE_OF_MEMORY * free:
        describe(done.path, trust_remote_code=student.trusts_code)
        return {"compared": f"no: {needed:,} bytes do not fit in {free:,} of memory"}
    model = load_strictly(done.path, trust_remote_code=student.trusts_code)
    refuse_nonfinite(model, str(done.path))
    vocab = model.config.get_text_config(decoder=True).vocab_size
    ids_BT = (torch.arange(64) * 7919 + 3).remainder(vocab).view(2, 32)
    why = why_not_openable(str(quantisation(read_json(student.folder / "config.json"))))
    if why is not None:
        return {"compared": f"no: {why}"}
    with torch.no_grad():
        ours = model(input_ids=ids_BT, use_cache=False).logits.float()
        del model
        packed = load_strictly(student.folder, trust_remote_code=student.trusts_code)
        theirs = packed(input_ids=ids_BT, use_cache=False).logits.float()
    difference = float((ours - theirs).square().mean().sqrt() / theirs.std().clamp_min(1e-12))
    if not difference <= MOST_DIFFERENCE:
        raise ValueError(
            f"{done.path}: its logits differ from the quantised model's by {difference:.2g} of their spread, "
            f"{MOST_DIFFERENCE:.2g} is allowed; start from the unquantised checkpoint"
        )
    return {"compared": "with the quantised model", "difference_of_spread": difference}


PLAIN = Exporter(
    name="plain",
    about="a quantised checkpoint out of its blocks: plain weights, which can be repaired, healed and pruned",
    refuses=refuses,
    write=write,
    verify=verify,
    writes_folder=lambda out: True,
    takes=frozenset({"kind"}),
)
