"""Prefill and decode speed of teacher and student, measured in turns on real models with their own key/value cache.

Prefill: tokens per second of one forward over the prompts, until the next token is known. Decode: tokens per second of
``new_tokens`` greedy steps that follow, one token per sample and step. A round measures both models, and the order swaps
from round to round, so that a machine that slows down slows both. Figures are medians over rounds with the interquartile
range; so are the ratios, taken within rounds, student over teacher (above 1: the student is faster). Rounds of warm-up are
not counted. The share of layers bounds what removal can give: L / L' where only layers cost time. A ratio above that bound,
or a wide range, says that other work ran on the machine.

Prompts are random tokens: speed does not depend on the text (mixtures of experts: nearly).
"""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from shoal.decoder import DecoderView
from shoal.types import Record


class Rates(Record):
    """Tokens per second of one model, one value per round, in the order measured.

    Attributes:
        peak_bytes: on CUDA, the model's weights and the most that was allocated on top during a round; None elsewhere.
    """

    prefill: tuple[float, ...]
    decode: tuple[float, ...]
    peak_bytes: int | None = None


class Speed(Record):
    """Teacher and student at one workload; the conditions are part of the result."""

    teacher: Rates
    student: Rates
    teacher_layers: int
    student_layers: int
    batch_size: int
    prompt_length: int
    new_tokens: int
    device: str
    dtype: str
    n_threads: int

    @property
    def prefill_ratios(self) -> tuple[float, ...]:
        """Student over teacher, per round."""
        return _ratios(self.student.prefill, self.teacher.prefill)

    @property
    def decode_ratios(self) -> tuple[float, ...]:
        """Student over teacher, per round."""
        return _ratios(self.student.decode, self.teacher.decode)

    @property
    def bound(self) -> float:
        """L / L': the ratio if nothing but layers cost time."""
        return self.teacher_layers / self.student_layers


def median_iqr(values: Sequence[float]) -> tuple[float, float]:
    """Median and interquartile range (0 for a single value)."""
    if len(values) == 1:
        return values[0], 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, high - low


def speed(
    teacher: DecoderView,
    student: DecoderView,
    *,
    batch_size: int = 1,
    prompt_length: int = 128,
    new_tokens: int = 32,
    rounds: int = 9,
    warmup: int = 1,
    seed: int = 0,
) -> Speed:
    """Measure both models in turns.

    Args:
        teacher, student: views of two models; the models are run directly, not replayed.
        rounds: counted rounds; ``warmup`` more are run first.
        seed: of the random prompts.
    Raises:
        ValueError: a count below 1 (``warmup``: below 0), models on different devices, or a model that returns no cache.
    """
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("prompt_length", prompt_length, 1),
        ("new_tokens", new_tokens, 1),
        ("rounds", rounds, 1),
        ("warmup", warmup, 0),
    ):
        if value < least:
            raise ValueError(f"{name}={value} needs at least {least}")
    if teacher.device != student.device:
        raise ValueError(
            f"teacher on {teacher.device}, student on {student.device}: put both on one device to compare their speed"
        )
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(teacher.config.vocab_size, (batch_size, prompt_length), generator=generator).to(teacher.device)
    models = (teacher.model, student.model)
    measured: tuple[list[tuple[float, float, int | None]], ...] = ([], [])
    for index in range(warmup + rounds):
        for which in (0, 1) if index % 2 == 0 else (1, 0):
            one = _round(models[which], ids_BT, new_tokens)
            if index >= warmup:
                measured[which].append(one)
    return Speed(
        teacher=_rates(measured[0]),
        student=_rates(measured[1]),
        teacher_layers=teacher.n_layers,
        student_layers=student.n_layers,
        batch_size=batch_size,
        prompt_length=prompt_length,
        new_tokens=new_tokens,
        device=torch.cuda.get_device_name(teacher.device) if teacher.device.type == "cuda" else str(teacher.device),
        dtype=str(student.dtype).removeprefix("torch."),
        n_threads=torch.get_num_threads(),
    )


@torch.inference_mode()
def _round(model: Any, ids_BT: Tensor, new_tokens: int) -> tuple[float, float, int | None]:
    """Prefill and decode rates of one model, tokens per second, and its peak memory on CUDA."""
    device = ids_BT.device
    before = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    started = _now(device)
    out = model(input_ids=ids_BT, use_cache=True, **_last_logits_only(model))
    next_B1 = out.logits[:, -1:].argmax(-1)
    prefilled = _now(device)
    if getattr(out, "past_key_values", None) is None:
        raise ValueError(
            f"model type {model.config.model_type!r} returns no key/value cache; its decode speed cannot be measured"
        )
    for _ in range(new_tokens):
        out = model(input_ids=next_B1, past_key_values=out.past_key_values, use_cache=True)
        next_B1 = out.logits[:, -1:].argmax(-1)
    done = _now(device)
    peak = None
    if device.type == "cuda":
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        peak = torch.cuda.max_memory_allocated(device) - before + weights
    n_samples, n_prompt = ids_BT.shape
    return n_samples * n_prompt / (prefilled - started), n_samples * new_tokens / (done - prefilled), peak


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _last_logits_only(model: Any) -> dict[str, int]:
    """As ``generate`` does: prefill needs the logits of the last position only, where the family can leave out the rest."""
    forward: Callable[..., Any] = model.forward
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(forward).parameters else {}


def _rates(measured: Sequence[tuple[float, float, int | None]]) -> Rates:
    prefill, decode, peaks = zip(*measured, strict=True)
    return Rates(prefill=prefill, decode=decode, peak_bytes=None if peaks[0] is None else max(peaks))


def _ratios(student: Sequence[float], teacher: Sequence[float]) -> tuple[float, ...]:
    return tuple(s / t for s, t in zip(student, teacher, strict=True))
