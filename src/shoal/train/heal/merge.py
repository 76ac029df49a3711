"""From the model that was trained to the checkpoint that is written, measured on both sides.

Three ways for adapters: into the student's own weights (``original``); into the weights that the adapters were trained beside,
taken out of 4 bits (``dequantised``); not at all (``apart``). UIDL (arXiv 2403.17887) does not say which it used; which is best
depends on the model, so ``auto`` measures those that there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.engine.families import find_layers
from shoal.engine.open import load_strictly
from shoal.engine.opening import Opening
from shoal.engine.spread import home_of
from shoal.train.heal.config import HealConfig
from shoal.train.heal.losses import measured
from shoal.train.heal.masks import apply_masks
from shoal.train.heal.qlora import out_of_4_bits
from shoal.train.heal.result import HealPoint, MergeTrial, Merging
from shoal.train.heal.streams import run_model
from shoal.train.heal.text_rows import counted
from shoal.train.heal.train import Lesson, Pupil, prepare
from shoal.words.entries import Entries, by_name
from shoal.words.progress import each
from shoal.words.records import nearest

Measures = dict[str, float]
"""``nll`` and, with a teacher, ``kl`` on the selection text, nats per token."""


@dataclass(frozen=True)
class MergeWay:
    """A way of merging adapters.

    Attributes:
        needs_quantised: only models that were trained beside 4-bit weights have it.
        writes: whether a checkpoint comes out.
    """

    name: str
    about: str
    needs_quantised: bool = False
    writes: bool = True


MERGES: Entries[MergeWay] = by_name(
    "way to merge",
    MergeWay("original", "into the student's own weights"),
    MergeWay("dequantised", "into the 4-bit weights they were trained beside, as full numbers", needs_quantised=True),
    MergeWay("apart", "not merged: the adapter is written beside the student", writes=False),
)


def merge_named(name: str, *, is_quantised: bool) -> str:
    """A way to merge, or ``auto``, that adapters of this kind have.

    Raises:
        ValueError: an unknown way, with the nearest; one for adapters beside 4-bit weights where there are none.
    """
    if name not in (*MERGES, "auto"):
        raise ValueError(f"unknown way to merge {name!r}; {nearest(name, (*MERGES, 'auto'))}")
    if name != "auto" and MERGES[name].needs_quantised and not is_quantised:
        raise ValueError(f"merge {name!r} is for adapters beside 4-bit weights (qlora); use original, apart or auto")
    return name


@torch.no_grad()
def measure(model: Any, lesson: Lesson, *, batch_size: int, device: str = "cpu") -> Measures:
    """NLL and KL of a model on the selection text of a lesson."""
    was_training = model.training
    model.eval()
    layers = list(find_layers(bare(model))[1])
    nll, kl, n = 0.0, 0.0, 0
    for batch in each("measure what was merged", lesson.selection.batches(batch_size)):
        batch = {name: value.to(device) for name, value in batch.items()}
        theirs = None if lesson.teacher is None else lesson.teacher.selection(batch)
        more_nll, more_kl = measured(run_model(model, layers, batch).logits_BTV, theirs, batch["labels"])
        nll += float(more_nll)
        kl += 0.0 if more_kl is None else float(more_kl)
        n += int(counted(batch["labels"]).sum())
    model.train(was_training)
    return {"nll": nll / n} if lesson.teacher is None else {"nll": nll / n, "kl": kl / n}


def bare(model: Any) -> Any:
    """The transformers model inside peft's."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def best_merge(
    asked: str, candidates: Mapping[str, Callable[[], Any]], unmerged: Measures, *, look: Callable[[Any], Measures], by: str
) -> tuple[Merging, Any]:
    """Merge in the way that was asked for, or in each, and keep the best.

    Args:
        asked: one of ``MERGES``, or ``auto``.
        candidates: by way, what makes the merged model; a call may use up what it merges.
        unmerged: of the trained model.
        look: measures a model.
        by: ``nll`` or ``kl``, the measure that decides.
    Returns: the record and the merged model; None where the adapter stays apart.
    Raises:
        ValueError: an unknown way, or one that this model has not.
    """
    merge_named(asked, is_quantised="dequantised" in candidates)
    record = Merging(way="apart", nll=unmerged["nll"], kl=unmerged.get("kl"))
    if asked == "apart":
        return record, None
    best: tuple[float, Any] | None = None
    trials = []
    for way in candidates if asked == "auto" else (asked,):
        model = candidates[way]()
        found = look(model)
        trials.append(MergeTrial(way=way, nll=found["nll"], kl=found.get("kl"), lost=found[by] - unmerged[by]))
        if best is None or trials[-1].lost < best[0]:
            best, record = (trials[-1].lost, model), record.model_copy(update={"way": way})
    assert best is not None
    return record.model_copy(update={"trials": tuple(trials)}), best[1]


def merge_pupil(
    pupil: Pupil, trained: HealPoint, config: HealConfig, lesson: Lesson, path: Path, opening: Opening = Opening()
) -> tuple[Merging, Any]:
    """The trained student as a plain model in its checkpoint's dtypes, measured and held against its validation.

    Args:
        pupil: trained; it is used up.
        trained: the validation of the values that it has: what the selection text says of it before the merge.
        path: the student's checkpoint, which 4-bit adapters are merged into.
    Returns: the record and the model; None where the adapter stays apart.
    Raises:
        ValueError: an unknown way to merge, or one that this method has not.
    """
    by = lesson.decided_by(config)

    def look(model: Any) -> Measures:
        return measure(model, lesson, batch_size=config.micro_batch, device=home_of(opening.device))

    unmerged = {"nll": trained.nll} if trained.kl is None else {"nll": trained.nll, "kl": trained.kl}
    if not pupil.method.has_adapters:
        return _narrowed(in_dtypes(_as_opened(pupil.model), pupil.dtypes), unmerged, look=look, by=by)
    if not pupil.method.is_quantised:
        made = {"original": lambda: _merged(pupil)}
        return best_merge(config.merge, made, unmerged, look=look, by=by)
    values = trained_values(pupil.model)

    def into(base: Any) -> Any:
        other = prepare(base.to(opening.device), config, lesson, evidence=pupil.evidence)
        adopt_values(other.model, values)
        return in_dtypes(other.model.merge_and_unload(), other.dtypes)

    made = {
        "original": lambda: into(load_strictly(path, trust_remote_code=opening.trust)),
        "dequantised": lambda: into(out_of_4_bits(path, opening)),
    }
    return best_merge(config.merge, made, unmerged, look=look, by=by)


def _merged(pupil: Pupil) -> Any:
    """The adapters added into the weights that they were trained beside."""
    model = pupil.model.merge_and_unload()
    apply_masks(model, pupil.masks)
    return in_dtypes(model, pupil.dtypes)


def _as_opened(model: Any) -> Any:
    """The model without the precision of its training: accelerate leaves an autocast around the forward of what it trained, and
    a checkpoint of another dtype would be held against its logits."""
    from accelerate.utils import extract_model_from_parallel

    return extract_model_from_parallel(model, keep_fp32_wrapper=False)


def _narrowed(model: Any, wide: Measures, *, look: Callable[[Any], Measures], by: str) -> tuple[Merging, Any]:
    """What rounding the trained parameters to the checkpoint's dtype costs; nothing where that is fp32."""
    if all(parameter.dtype == torch.float32 for parameter in model.parameters()):
        return Merging(way="none", nll=wide["nll"], kl=wide.get("kl")), model
    found = look(model)
    trial = MergeTrial(way="none", nll=found["nll"], kl=found.get("kl"), lost=found[by] - wide[by])
    return Merging(way="none", nll=wide["nll"], kl=wide.get("kl"), trials=(trial,)), model


@torch.no_grad()
def in_dtypes(model: Any, dtypes: Mapping[str, torch.dtype]) -> Any:
    """The model with every parameter in the dtype that its checkpoint had, which training may have widened."""
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtypes[name])
        parameter.requires_grad_(False)
    return model


def trained_values(model: Any) -> dict[str, Tensor]:
    """The trained parameters by name, on the CPU; of sharded ones every process asks, and each gets the whole."""
    return {name: whole(value.detach()).cpu().contiguous() for name, value in model.named_parameters() if value.requires_grad}


def whole(value: Any) -> Tensor:
    """A parameter that may be divided among processes, put together."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


@torch.no_grad()
def adopt_values(model: Any, values: Mapping[str, Tensor]) -> None:
    """Set the trained parameters to :func:`trained_values` of a model of the same making.

    Raises:
        ValueError: they are of another model or method.
    """
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    wrong = sorted(parameters.keys() ^ values.keys())
    wrong += [name for name in parameters if name in values and parameters[name].shape != values[name].shape]
    if wrong:
        raise ValueError(f"the trained values are of another model or method: {len(wrong)} differ, first {wrong[0]!r}")
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
