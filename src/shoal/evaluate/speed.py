"""Prefill and decode speed of teacher and student, measured in turns on real models with their own key/value cache.

Prefill: tokens per second of one forward over the prompts, until the first new token is known. Decode: tokens per second of
``new_tokens`` greedy steps that follow, one token per sample and step. A round measures all models, and the order swaps from
round to round, so that a machine that slows down slows all. Figures are medians over rounds with the interquartile range.
Ratios are taken within rounds, student over teacher (above 1: the student is faster); their median has an interval between
order statistics, which assumes no distribution. Rounds of warm-up are not counted.

The bound. One forward of L layers takes t0 + L t1: t0 for embedding, head and the loop around them, t1 for a layer. Both are
fitted by least squares to the teacher cut to several depths (its first layers) in the same rounds; the student takes no part.
So (t0 + L t1) / (t0 + L' t1) is what removing layers can give on this machine and workload. It assumes layers of one cost. A
ratio far from it, or a wide interval, says that other work ran on the machine.

Prompts are random tokens: speed does not depend on the text (mixtures of experts: nearly).
"""

import inspect
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.evaluate.intervals import LEVEL, Interval
from shoal.evaluate.peak_memory import peak_bytes
from shoal.words.progress import tell
from shoal.words.records import Record
from shoal.words.types import Unit

SpeedPhase = Literal["prefill", "decode"]


class Rates(Record):
    """Tokens per second of one model, one value per round, in the order measured.

    Attributes:
        peak_bytes: weights, and the most that prefill and the first step hold on top (:mod:`shoal.evaluate.peak_memory`).
    """

    prefill: tuple[float, ...]
    decode: tuple[float, ...]
    peak_bytes: int | None = None

    def of(self, phase: SpeedPhase) -> tuple[float, ...]:
        """The rates of one phase."""
        return self.prefill if phase == "prefill" else self.decode


class AtDepth(Record):
    """The teacher cut to its first ``layers`` layers, in the same rounds."""

    layers: int
    rates: Rates


class LayerTime(Record):
    """Seconds of one forward: ``around`` (t0) and ``per_layer`` (t1)."""

    around: float
    per_layer: float

    def seconds(self, n_layers: int) -> float:
        return self.around + n_layers * self.per_layer


class Speed(Record):
    """Teacher and student at one workload; the conditions are part of the result.

    Attributes:
        depths: for the bound.
        dtype: of both; where they differ the teacher's and the student's, and a ratio then is not of the layers alone.
    """

    teacher: Rates
    student: Rates
    depths: tuple[AtDepth, ...] = ()
    teacher_layers: int
    student_layers: int
    batch_size: int
    prompt_length: int
    new_tokens: int
    device: str
    dtype: str
    n_threads: int

    def ratios(self, phase: SpeedPhase) -> tuple[float, ...]:
        """Student over teacher, per round."""
        return tuple(s / t for s, t in zip(self.student.of(phase), self.teacher.of(phase), strict=True))

    def ratio(self, phase: SpeedPhase) -> Interval:
        """Median over rounds of student over teacher, with its interval."""
        return median_interval(self.ratios(phase))

    def first_token_seconds(self, rates: Rates) -> float:
        """Median seconds from the prompts to their first new tokens."""
        return self.batch_size * self.prompt_length / statistics.median(rates.prefill)

    @property
    def bound_of_layers(self) -> float:
        """L / L': the ratio if nothing but layers cost time."""
        return self.teacher_layers / self.student_layers

    def layer_time(self, phase: SpeedPhase) -> LayerTime | None:
        """t0 and t1 of one forward; None where the teacher could not be measured at two depths."""
        if not self.depths:
            return None
        n_tokens = self.batch_size * (self.prompt_length if phase == "prefill" else 1)
        measured = [(one.layers, one.rates.of(phase)) for one in self.depths]
        measured.append((self.teacher_layers, self.teacher.of(phase)))
        return fit_layer_time([(layers, n_tokens / statistics.median(rates)) for layers, rates in measured])

    def bound(self, phase: SpeedPhase) -> float:
        """(t0 + L t1) / (t0 + L' t1); L / L' where t0 and t1 are not known."""
        found = self.layer_time(phase)
        if found is None or found.seconds(self.student_layers) <= 0:
            return self.bound_of_layers
        return found.seconds(self.teacher_layers) / found.seconds(self.student_layers)


def fit_layer_time(seconds: Sequence[tuple[int, float]]) -> LayerTime:
    """Least squares of t0 + L t1 through (layers, seconds); a line through 0 where t0 would be negative."""
    layers, times = [one[0] for one in seconds], [one[1] for one in seconds]
    per_layer, around = statistics.linear_regression(layers, times)
    if around < 0:
        per_layer, around = statistics.linear_regression(layers, times, proportional=True)
    return LayerTime(around=around, per_layer=per_layer)


def median_iqr(values: Sequence[float]) -> tuple[float, float]:
    """Median and interquartile range (0 for a single value)."""
    if len(values) == 1:
        return values[0], 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, high - low


def median_interval(values: Sequence[float]) -> Interval:
    """The median between two order statistics that enclose the true one in at least ``LEVEL`` of all cases (sign test).

    The narrowest such pair; where even the extremes enclose it less often (fewer than 6 values for 95 %), those, and the
    interval's ``level`` says how often: 1 - 2 P(Binomial(n, 1/2) < rank).
    """
    ordered, n = sorted(values), len(values)
    rank, outside = 1, 2 * 0.5**n
    while rank < (n + 1) // 2 and outside + 2 * math.comb(n, rank) * 0.5**n <= 1 - LEVEL:
        outside += 2 * math.comb(n, rank) * 0.5**n
        rank += 1
    return Interval(value=statistics.median(ordered), low=ordered[rank - 1], high=ordered[n - rank], level=1 - outside)


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
    """Measure both models in turns, and the teacher at two smaller depths for the bound.

    Args:
        teacher, student: views of two models; the models are run directly, not replayed.
        rounds: counted rounds; ``warmup`` more are run first.
        seed: of the random prompts.
    Raises:
        ValueError: a count below 1 (``warmup``: below 0), models on different devices, or a model that returns no cache.
    """
    if teacher.device != student.device:
        raise ValueError(
            f"teacher on {teacher.device}, student on {student.device}: put both on one device to compare their speed"
        )
    shallow = at_depths(teacher)
    models = [teacher.model, student.model, *shallow.values()]
    measured = in_turns(
        models,
        batch_size=batch_size,
        prompt_length=prompt_length,
        new_tokens=new_tokens,
        rounds=rounds,
        warmup=warmup,
        seed=seed,
    )
    ours, theirs, *others = measured
    depths = [AtDepth(layers=n, rates=one) for n, one in zip(shallow, others, strict=True)]
    return Speed(
        teacher=ours,
        student=theirs,
        depths=tuple(depths),
        teacher_layers=teacher.n_layers,
        student_layers=student.n_layers,
        batch_size=batch_size,
        prompt_length=prompt_length,
        new_tokens=new_tokens,
        device=torch.cuda.get_device_name(teacher.device) if teacher.device.type == "cuda" else str(teacher.device),
        dtype=" and ".join(dict.fromkeys(str(view.dtype).removeprefix("torch.") for view in (teacher, student))),
        n_threads=torch.get_num_threads(),
    )


ROUND_OF_ALL = 2.5
"""Time of a round of teacher, student and the two depths, in rounds of the teacher: 1 + less than 1 + 1/2 + one layer."""

BESIDE_ROUNDS = 2
"""The warm-up and the measure of memory, in rounds."""


def rounds_within(
    seconds: float, model: Any, *, batch_size: int = 1, prompt_length: int = 128, new_tokens: int = 32, most: int = 9
) -> int:
    """How many rounds of :func:`speed` fit into so many seconds, warm-up and the measure of memory included; 0: not one.

    The teacher is run once to find out; that round is part of the seconds. It ends as soon as it has taken too long for a
    single round to fit, so that on a slow machine the question costs a part of the seconds, too.
    """
    n_vocab, device = model.get_input_embeddings().num_embeddings, model.get_input_embeddings().weight.device
    ids_BT = torch.randint(n_vocab, (batch_size, prompt_length), generator=torch.Generator().manual_seed(0)).to(device)
    longest = seconds / (1 + (1 + BESIDE_ROUNDS) * ROUND_OF_ALL)
    started, first = _now(device), 0.0
    for done, _ in enumerate(_steps(model, ids_BT, new_tokens)):
        tell("try how fast it is", done + 1, new_tokens + 1)
        first = _now(device) - started
        if first > longest:
            return 0
    return max(0, min(most, int((seconds - first) / (ROUND_OF_ALL * max(first, 1e-9))) - BESIDE_ROUNDS))


def at_depths(view: DecoderView) -> dict[int, Any]:
    """The model with its first layer alone and with its first half, by layers: stock models that share its weights.

    Depths that the family cannot be left with are missing.
    """
    from shoal.checkpoint.in_memory import cut

    found: dict[int, Any] = {}
    for n in sorted({1, view.n_layers // 2} - {0, view.n_layers}):
        gone = frozenset(Unit("layer", layer) for layer in range(n, view.n_layers))
        try:
            found[n] = cut(view, Student(removed=gone))
        except ValueError:  # Some families cannot be left with these layers; the bound then rests on fewer depths.
            continue
    return found


def in_turns(
    models: Sequence[Any],
    *,
    batch_size: int = 1,
    prompt_length: int = 128,
    new_tokens: int = 32,
    rounds: int = 9,
    warmup: int = 1,
    seed: int = 0,
) -> list[Rates]:
    """Rates of any number of models on one device, in rounds whose order swaps; the prompts fit the smallest vocabulary.

    Raises:
        ValueError: as :func:`speed`.
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
    n_vocab = min(model.get_input_embeddings().num_embeddings for model in models)
    device = models[0].get_input_embeddings().weight.device
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(n_vocab, (batch_size, prompt_length), generator=generator).to(device)
    measured: list[list[tuple[float, float]]] = [[] for _ in models]
    order = range(len(models))
    n_steps = (warmup + rounds + 1) * len(models)
    for index in range(warmup + rounds):
        for at, which in enumerate(order if index % 2 == 0 else reversed(order)):
            tell("measure speed", index * len(models) + at, n_steps)
            one = _round(models[which], ids_BT, new_tokens)
            if index >= warmup:
                measured[which].append(one)
    peaks: list[int] = []
    for model in models:
        tell("measure speed", n_steps - len(models) + len(peaks), n_steps)
        peaks.append(_peak(model, ids_BT))
    tell("measure speed", n_steps, n_steps)
    return [
        Rates(prefill=tuple(p for p, _ in one), decode=tuple(d for _, d in one), peak_bytes=peak)
        for one, peak in zip(measured, peaks, strict=True)
    ]


@torch.inference_mode()
def _round(model: Any, ids_BT: Tensor, new_tokens: int) -> tuple[float, float]:
    """Prefill and decode rates of one model, tokens per second."""
    device = ids_BT.device
    started = _now(device)
    steps = _steps(model, ids_BT, new_tokens)
    next(steps)
    prefilled = _now(device)
    for _ in steps:
        pass
    done = _now(device)
    n_samples, n_prompt = ids_BT.shape
    return n_samples * n_prompt / (prefilled - started), n_samples * new_tokens / (done - prefilled)


@torch.inference_mode()
def _steps(model: Any, ids_BT: Tensor, new_tokens: int) -> Iterator[None]:
    """The forward over the prompts, then one for each new token; a step when each of them is done.

    Raises:
        ValueError: the model returns no cache.
    """
    out = model(input_ids=ids_BT, use_cache=True, **_last_logits_only(model))
    next_B1 = out.logits[:, -1:].argmax(-1)
    if getattr(out, "past_key_values", None) is None:
        raise ValueError(
            f"model type {model.config.model_type!r} returns no key/value cache; its decode speed cannot be measured"
        )
    yield
    for _ in range(new_tokens):
        out = model(input_ids=next_B1, past_key_values=out.past_key_values, use_cache=True)
        next_B1 = out.logits[:, -1:].argmax(-1)
        yield


@torch.inference_mode()
def _peak(model: Any, ids_BT: Tensor) -> int:
    """Bytes of the weights, and of the most that prefill and one step hold at a time."""

    def run() -> None:
        out = model(input_ids=ids_BT, use_cache=True, **_last_logits_only(model))
        model(input_ids=out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True)

    weights = {id(p): p for p in model.parameters()}.values()
    held = [*weights, *model.buffers(), ids_BT]
    return sum(p.numel() * p.element_size() for p in weights) + peak_bytes(run, held=held, device=ids_BT.device)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _last_logits_only(model: Any) -> dict[str, int]:
    """As ``generate`` does: prefill needs the logits of the last position only, where the family can leave out the rest."""
    forward: Callable[..., Any] = model.forward
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(forward).parameters else {}
