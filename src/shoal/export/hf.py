"""The format ``hf``: a checkpoint folder that old and new readers read alike, whoever wrote the student's."""

from pathlib import Path
from typing import Any

from shoal.export.exporter import Exported, Exporter, Options, StudentFolder


def refuses(student: StudentFolder, options: Options) -> str | None:
    return student.untrusted


def write(student: StudentFolder, out: Path | None, options: Options) -> Exported:
    from shoal.checkpoint.rewrite import rewrite
    from shoal.edits.plan import Plan
    from shoal.words.structure import Size

    assert out is not None
    n = student.config["num_hidden_layers"] if "num_hidden_layers" in student.config else _depth(student)
    size = Size(layers=n, parameters=0)
    nothing = Plan(source=str(student.folder), source_hash="", teacher="", n_layers=n, before=size, after=size)
    done = rewrite(student.folder, nothing, out, trust_remote_code=student.trusts_code)
    return Exported(done, "config.json under old and new names, weights byte for byte")


def _depth(student: StudentFolder) -> int:
    from shoal.checkpoint.config_fields import count_layers

    return count_layers(student.config)


def verify(student: StudentFolder, done: Exported) -> dict[str, Any]:
    """Reload both and compare logits; a quantised folder is compared by its tensors.

    Raises:
        ValueError: they differ.
    """
    from shoal.checkpoint.verify import verify as reload
    from shoal.engine.open import load_strictly
    from shoal.engine.opening import Opening
    from shoal.engine.source import quantisation

    assert done.path is not None
    if quantisation(student.config) is not None:
        return {"reload": "not tried: it is quantised"}
    import torch

    model = load_strictly(student.folder, trust_remote_code=student.trusts_code)
    vocab = model.config.get_text_config(decoder=True).vocab_size
    ids_BT = torch.arange(32).remainder(vocab).view(2, 16)
    checked = reload(done.path, ids_BT=ids_BT, reference=model, opening=Opening(trust=student.trusts_code))
    return {"logit_difference": checked.logit_difference, "tensors": checked.n_tensors}


HF = Exporter(
    name="hf",
    about="a folder for transformers, old and new, vLLM, MLX and others; config.json says everything under both names",
    refuses=refuses,
    write=write,
    verify=verify,
    writes_folder=lambda out: True,
)
