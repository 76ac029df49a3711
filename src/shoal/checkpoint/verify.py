"""Prove that a saved checkpoint is the student: names and shapes, strict reload, equal logits, cache equal to no cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoal.checkpoint.blueprint import refuse_other_tensors
from shoal.edits.replace.contract import Layout
from shoal.engine.model_config import build_empty
from shoal.engine.open import load_strictly, refuse_nonfinite
from shoal.engine.opening import Opening
from shoal.engine.quantised import shapes_of
from shoal.engine.spread import home_of
from shoal.engine.streamed import open_streamed
from shoal.engine.view import DecoderView
from shoal.words.progress import tell
from shoal.words.records import Record
from shoal.words.structure import Size
from shoal.words.types import Batch

# Largest difference allowed, relative to the largest logit. The same operations on the same bits give 0.0 (the tests ask for
# that); other devices and memory layouts reorder sums, and a cached step is a product of another shape.
LOGIT_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
CACHE_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


CHECKED = "check the checkpoint"


class Verification(Record):
    """What was checked on a reloaded checkpoint; exists only when every check passed.

    Attributes:
        size: layers and parameters of the reloaded model, tied ones once.
        n_tensors: names and shapes that agree with the model built from the config alone.
        logit_difference: largest absolute difference to the student's logits; None when there was no student to compare with.
        cache_difference: largest absolute difference, last position, between T tokens in the cache plus one and T + 1 without.
        logit_tolerance, cache_tolerance: the limits, absolute.
        tokens_equal: the two last positions have the same most likely token.
        n_tokens: T + 1.
        layout: ``stock``, or ``code`` for a checkpoint that comes with code.
    """

    path: str
    dtype: str
    size: Size
    n_tensors: int
    logit_difference: float | None
    logit_tolerance: float
    cache_difference: float
    cache_tolerance: float
    tokens_equal: bool
    n_tokens: int
    layout: Layout = "stock"


Reference = Callable[[Tensor], Tensor] | nn.Module


@torch.no_grad()
def verify(path: Path, *, ids_BT: Tensor, reference: Reference | None = None, opening: Opening = Opening()) -> Verification:
    """Reload a checkpoint folder and check it.

    Args:
        ids_BT: some token ids, at least 2 per sample; longer than the sliding window is better.
        reference: the student: token ids (B, T) to logits (B, T, V), or a model in memory.
        opening: its device is the student's, for equal bits; it trusts a checkpoint whose code was written here, or whose
            source the user trusts. The checkpoint's own dtype is kept.
    Raises:
        ValueError: any check failed; says which, with the difference and the limit.
    """
    path = Path(path)
    if ids_BT.ndim != 2 or ids_BT.shape[1] < 2:
        raise ValueError(f"verify needs token ids of shape (B, T) with T at least 2, got {tuple(ids_BT.shape)}")
    tell(CHECKED, 0, 3)
    model = load_strictly(path, device=opening.device, trust_remote_code=opening.trust)
    refuse_nonfinite(model, str(path))
    tell(CHECKED, 1, 3)
    shapes = shapes_of(model)
    if shapes is model:  # Packed tensors have names and shapes of their own, which loading has asked for.
        refuse_other_tensors(model, build_empty(model.config, model_class=type(model)), str(path))
    ids_BT = ids_BT.to(home_of(opening.device))
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits.float()
    scale = float(logits_BTV.abs().max())
    if not math.isfinite(scale):
        raise ValueError(f"{path}: its logits are NaN or infinite; check config.json, and the weights of the source")
    logit_limit = LOGIT_TOLERANCE.get(model.dtype, 2e-2) * scale
    # Packed weights are multiplied by kernels of half precision that differ for one token and for many.
    is_packed = shapes is not model
    cache_limit = (5e-2 if is_packed else CACHE_TOLERANCE.get(model.dtype, 5e-2)) * scale
    difference = None
    if reference is not None:
        theirs_BTV = _logits(reference, ids_BT).float().to(logits_BTV.device)
        difference = _largest_difference(logits_BTV, theirs_BTV)
        if not difference <= logit_limit:
            raise ValueError(
                f"{path}: reloaded logits differ from the student's by {difference:.3g}, allowed {logit_limit:.3g}"
            )
    tell(CHECKED, 2, 3)
    last_BV = logits_BTV[:, -1]
    try:
        cached_BV = _cached_last(model, ids_BT)
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: running with a cache fails: {type(error).__name__}: {reason}") from None
    cache_difference = _largest_difference(last_BV, cached_BV)
    if not cache_difference <= cache_limit:
        raise ValueError(f"{path}: with and without cache logits differ by {cache_difference:.3g}, allowed {cache_limit:.3g}")
    equal = bool(torch.equal(last_BV.argmax(-1), cached_BV.argmax(-1)))
    if not equal and not is_packed and model.dtype == torch.float32 and not _is_tie(last_BV, cached_BV):
        raise ValueError(f"{path}: with and without cache the model says different tokens")
    tell(CHECKED, 3, 3)
    return Verification(
        path=str(path),
        dtype=str(model.dtype).removeprefix("torch."),
        size=Size(layers=model.config.get_text_config(decoder=True).num_hidden_layers, parameters=_n_parameters(shapes)),
        n_tensors=len(model.state_dict()),
        logit_difference=difference,
        logit_tolerance=logit_limit,
        cache_difference=cache_difference,
        cache_tolerance=cache_limit,
        tokens_equal=equal,
        n_tokens=ids_BT.shape[1],
        layout=layout_of_class(model),
    )


def layout_of_class(model: nn.Module) -> Layout:
    """``code`` for a model whose class comes with its checkpoint, else ``stock``."""
    return "stock" if type(model).__module__.startswith("transformers.") else "code"


def _logits(reference: Reference, ids_BT: Tensor) -> Tensor:
    if isinstance(reference, nn.Module):
        return reference(input_ids=ids_BT, use_cache=False).logits
    return reference(ids_BT)


def _cached_last(model: Any, ids_BT: Tensor) -> Tensor:
    """(B, V) logits of the last token, all others coming from the cache."""
    first = model(input_ids=ids_BT[:, :-1], use_cache=True)
    name = "cache_params" if "cache_params" in first else "past_key_values"  # Mamba calls its cache so.
    past = {name: first[name], "attention_mask": torch.ones_like(ids_BT)}
    step = model(input_ids=ids_BT[:, -1:], use_cache=True, **past)
    return step.logits[:, -1].float()


def _largest_difference(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        raise ValueError(f"logits have shape {tuple(a.shape)}, the student's {tuple(b.shape)}; these are not the same model")
    return float((a - b).abs().max())


def _is_tie(a_BV: Tensor, b_BV: Tensor) -> bool:
    """Where the most likely tokens differ, the logits of the two are within the difference of the two runs."""
    gap_B = a_BV.max(-1).values - a_BV.gather(-1, b_BV.argmax(-1, keepdim=True))[:, 0]
    return bool((gap_B <= 2 * (a_BV - b_BV).abs().max(-1).values).all())


def _n_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())  # ``named_parameters`` yields tied ones once.


@torch.no_grad()
def verify_streamed(path: Path, *, ids_BT: Tensor, reference_BTV: Tensor, trust_remote_code: bool = False) -> Verification:
    """As :func:`verify` for a checkpoint that may not fit in memory: its layers are read one after the other.

    It runs on the device of the reference. The cached step is left out, because it needs all layers at once;
    ``cache_difference`` is NaN.

    Raises:
        ValueError: any check failed; says which, with the difference and the limit.
    """
    opened, residency = open_streamed(path, Opening(device=str(reference_BTV.device), trust=trust_remote_code))
    view = DecoderView(opened.model, residency=residency)
    tell(CHECKED, 0, 1)
    logits_BTV = view.logits(Batch(ids_BT)).float()
    tell(CHECKED, 1, 1)
    difference = float((logits_BTV - reference_BTV.float()).abs().max())
    limit = LOGIT_TOLERANCE.get(view.dtype, 2e-2) * float(logits_BTV.abs().max())
    if not difference <= limit:
        raise ValueError(f"{path}: its logits differ from the student's by {difference:.3g}, {limit:.3g} is allowed")
    return Verification(
        path=str(path),
        dtype=str(view.dtype).removeprefix("torch."),
        size=Size(layers=view.n_layers, parameters=sum(p.numel() for p in opened.model.parameters())),
        n_tensors=len(opened.model.state_dict()),
        logit_difference=difference,
        logit_tolerance=limit,
        cache_difference=math.nan,
        cache_tolerance=math.nan,
        tokens_equal=True,
        n_tokens=ids_BT.shape[1],
        layout=layout_of_class(opened.model),
    )
