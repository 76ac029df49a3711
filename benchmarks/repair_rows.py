"""The methods of the repair table: each makes a student of one cut. One line each in ``ROWS``.

All rows share the cut, the text they fit or train on, and the teacher's states at every boundary. Seconds are CPU seconds of
one thread, which other work on the machine does not stretch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from shoal.edits.drop import Drop
from shoal.edits.plan import Plan
from shoal.edits.replace.table import replacement_named
from shoal.engine.student import Attached, Student
from shoal.engine.view import DecoderView, Tap
from shoal.fit.boundary_states import BoundaryStates
from shoal.fit.fit_config import FitConfig
from shoal.fit.fit_job import FitJob
from shoal.fit.repair import Fit
from shoal.fit.replacement_fit import fit_replacements
from shoal.fit.sites.folded_map import find_output
from shoal.fit.sites.of_layer import Sites, probe_of
from shoal.fit.sweep import MAPS, SHARE, Sweep
from shoal.fit.table import fit_of
from shoal.fit.targets import from_first_cut
from shoal.recipes.table import RECIPES
from shoal.text.samples import Samples
from shoal.train.config import TrainConfig, TrainingPhase
from shoal.train.loop import Judge, Trained, train_starts
from shoal.train.parts import Start
from shoal.words.structure import Size
from shoal.words.types import Batch, Span, Unit

EQUAL = FitConfig(weights="plain", sinks="counted", ridge=0.0, keep="always")
"""Least squares as the papers have it: every token alike, no ridge, nothing undone."""


@dataclass(eq=False)
class Cut:
    """One span out of one model, with the text of the fit and what is shared between methods.

    Attributes:
        known: the teacher's states on the text of the fit, per boundary.
        selection: a little text, to choose the best training step by ``quality`` (KL to the teacher).
        training: text of ``long`` tokens; ``long``, ``short``: tokens that replacements are trained on, and a stage of polish.
    """

    view: DecoderView
    span: Span
    fit: Samples
    batches: Sequence[Batch]
    known: dict[int, BoundaryStates]
    training: Samples
    selection: Samples
    quality: Judge
    long: int
    short: int
    fitted: dict[str, Made] = field(default_factory=dict)

    @property
    def plain(self) -> Student:
        return Student(removed=frozenset(Unit("layer", layer) for layer in self.span.layers), name="none")

    @property
    def plan(self) -> Plan:
        n, size = self.view.n_layers, Size(layers=self.view.n_layers, parameters=1)
        edits = (Drop(indices=tuple(self.span.layers)),)
        return Plan(source="", source_hash="", teacher="", n_layers=n, edits=edits, before=size, after=size)

    def with_replacement(self, kind: str, *, span: Span | None = None, **options: object) -> Student:
        """The student with an untrained replacement in place of the span."""
        span = span or self.span
        description = replacement_named(kind, options).resolved(self.view)
        attached = Attached(span, description.build(self.view, span), description.args_from(span))
        inside = frozenset(unit for unit in self.plain.removed if unit.index not in span)
        return Student(removed=inside, attached=(attached,), name=kind)


@dataclass(frozen=True, eq=False)
class Made:
    """A student and what it cost besides the text of the fit."""

    student: Student
    fit_tokens: int = 0
    train_tokens: int = 0
    seconds: float = 0.0

    new_parameters: int = 0


Method = Callable[[Cut], Made]

BATCH = 4
"""Samples a step where a row trains on ``long`` tokens. A polish is short: it takes one sample a step, to have steps enough."""

POLISH_LR = {"hidden_mse": 3e-3, "forward_kl": 1e-3}
"""Peak rates of a polish: it starts at a solution, which the rate of a fresh replacement would throw away first. Of 1e-4, 3e-4,
1e-3 and 3e-3 the best on one cut of books-12l (layers 4..6), 15 k tokens."""


def none(cut: Cut) -> Made:
    return Made(cut.plain)


def repaired(name: str, config: FitConfig = FitConfig(), *, fit: Fit | None = None) -> Method:  # noqa: B008  (frozen)
    """A ``--repair``; ``fit``: what it runs instead of its own."""

    def method(cut: Cut) -> Made:
        started = time.process_time()
        run = fit or fit_of(name)
        swept = run(FitJob(cut.view, cut.plain, cut.batches, config, cut.known), cut.plan)
        made = Made(replace(cut.plain, overrides=swept.values, name=name), cut.fit.n_tokens, 0, time.process_time() - started)
        if config == FitConfig() and fit is None:
            cut.fitted[name] = made
        return made

    return method


def solved(kind: str, config: FitConfig = FitConfig(), **options: object) -> Method:  # noqa: B008  (frozen)
    """A replacement in closed form."""

    def method(cut: Cut) -> Made:
        student = cut.with_replacement(kind, layout="code", **options)
        started = time.process_time()
        found = fit_replacements(FitJob(cut.view, student, cut.batches, config=config, known=cut.known))
        seconds = time.process_time() - started
        return Made(found.student, cut.fit.n_tokens, 0, seconds, new_parameters=_n_attached(found.student))

    return method


def map_by_cosine(cut: Cut, *, epochs: int = 10, rows: int = 1024, lr: float = 1e-4) -> Made:
    """ReplaceMe's cosine objective: Adam on T from the identity, 1 - cos(m T + r, y), as its reproduction configs have it.

    Source: arXiv 2505.02819 (``accurate`` variant: the residual is added before the cosine). Epochs, batch of 1024 tokens and
    learning rate are those of its configs; the text is ours.
    """
    started = time.process_time()
    view, layer = cut.view, cut.span.start - 1
    probe = probe_of(view, cut.batches)
    place = find_output(view, layer, "mlp", reading=probe, h_BTD=probe.h_BTD)
    said, rest, goals = [], [], []
    with torch.no_grad():
        for index, batch in enumerate(cut.batches):
            seen: dict[Tap, Tensor] = {}
            with view.tapped(layer, [place.tap], seen):
                output_BTD = view.run_layer(layer, cut.known[layer][index], view.read(batch))
            m_BTD = place.gain * seen[place.tap].reshape(output_BTD.shape)
            said.append(m_BTD.flatten(0, 1).float())
            rest.append((output_BTD - m_BTD).flatten(0, 1).float())
            goals.append(cut.known[cut.span.stop][index].flatten(0, 1).float())
    m_ND, r_ND, y_ND = (torch.cat(parts) for parts in (said, rest, goals))
    turn_DD = torch.eye(m_ND.shape[1]).requires_grad_()
    optimizer = torch.optim.Adam([turn_DD], lr=lr)
    draw = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for chosen_N in torch.randperm(len(m_ND), generator=draw).split(rows):
            optimizer.zero_grad()
            (1 - torch.cosine_similarity(m_ND[chosen_N] @ turn_DD + r_ND[chosen_N], y_ND[chosen_N], dim=-1)).mean().backward()
            optimizer.step()
    change_ED = place.gain * torch.nn.functional.pad(turn_DD.detach().double() - torch.eye(len(turn_DD)), (0, 0, 0, 1))
    with view.residency.layer(layer) as module:
        values = place.changed(dict(module.named_parameters()), change_ED)
    student = replace(cut.plain, overrides={layer: values}, name="map by cosine")
    return Made(student, cut.fit.n_tokens, epochs * cut.fit.n_tokens, time.process_time() - started)


# -- gradient training -----------------------------------------------------------------------------------------------------


def trained(cut: Cut, student: Student, *stages: TrainingPhase, batch: int = BATCH) -> Made:
    """Train what a student holds; the best of five steps by KL on the selection text is kept, step 0 is one of them."""
    started = time.process_time()
    (one,) = _train(cut, [student], stages, batch=batch)
    seconds = time.process_time() - started
    return Made(one.student, 0, one.result.n_tokens, seconds, new_parameters=_n_attached(one.student))


def _n_attached(student: Student) -> int:
    return sum(parameter.numel() for one in student.attached for parameter in one.module.parameters())


def _train(
    cut: Cut, students: Sequence[Student], stages: Sequence[TrainingPhase], *, batch: int = BATCH
) -> tuple[Trained, ...]:
    n_samples = sum(stage.tokens or 0 for stage in stages) // cut.training.length
    config = TrainConfig(stages=tuple(stages), batch=batch, micro_batch=batch, eval_every=max(1, n_samples // batch // 4))
    return train_starts(
        cut.view,
        [Start(student) for student in students],
        training=cut.training,
        selection=cut.selection,
        config=config,
        quality=cut.quality,
    )


def polished(*objectives: str) -> Method:
    """The sweep, then its values trained for one objective after the other, one sample a step."""

    def method(cut: Cut) -> Made:
        start = cut.fitted.get("sweep") or repaired("sweep")(cut)
        return _after(start, _polish(cut, start.student, *objectives))

    return method


def polished_layer(cut: Cut) -> Made:
    """The sweep, then the layer before the cut whole with all that the sweep set: hidden states, one sample a step."""
    start = cut.fitted.get("sweep") or repaired("sweep")(cut)
    return _after(start, _polish(cut, _with_layer(cut, start.student), "hidden_mse"))


def full(cut: Cut) -> Made:
    """As :func:`polished_layer`, in the stages, at the rates and with the batch of the recipe ``polished``."""
    start = cut.fitted.get("sweep") or repaired("sweep")(cut)
    config = RECIPES["polished"].recipe.train.model_copy(update={"tokens": cut.long})
    stages = [
        TrainingPhase(objective=one.objective, tokens=spent, lr=one.rates(cut.view.hidden_size)[0])
        for one, spent in zip(config.schedule(), config.stage_tokens(cut.long), strict=True)
    ]
    return _after(start, trained(cut, _with_layer(cut, start.student), *stages))


def _polish(cut: Cut, student: Student, *objectives: str) -> Made:
    stages = (TrainingPhase(objective=one, tokens=cut.short, lr=POLISH_LR[one]) for one in objectives)
    return trained(cut, student, *stages, batch=1)


def _after(start: Made, made: Made) -> Made:
    """What was trained from a fit, with what the fit cost."""
    return replace(made, fit_tokens=start.fit_tokens, seconds=made.seconds + start.seconds)


def _with_layer(cut: Cut, student: Student) -> Student:
    """The student with every value of the layer before the cut among its own."""
    front = cut.span.start - 1
    with cut.view.residency.layer(front) as module:
        whole = {name: value.detach().clone() for name, value in module.named_parameters()}
    overrides = {**student.overrides, front: {**whole, **student.overrides.get(front, {})}}
    return replace(student, overrides=overrides, name="layer")


def control(*, equal: Literal["tokens", "time"]) -> Method:
    """Adam alone, from the teacher's own values, on exactly the parameters the sweep refits, on as many tokens or as long."""

    def method(cut: Cut) -> Made:
        sweep = cut.fitted.get("sweep") or repaired("sweep")(cut)
        start = replace(sweep.student, overrides=_original(cut.view, sweep.student), name="control")
        if equal == "tokens":
            return trained(cut, start, TrainingPhase(objective="hidden_mse", tokens=cut.fit.n_tokens))
        trial = trained(cut, start, TrainingPhase(objective="hidden_mse", tokens=40 * cut.training.length))
        affordable = int(sweep.seconds / trial.seconds * trial.train_tokens)
        most = cut.training.n_tokens
        return trained(
            cut, start, TrainingPhase(objective="hidden_mse", tokens=max(40 * cut.training.length, min(affordable, most)))
        )

    return method


def _original(view: DecoderView, student: Student) -> dict[int, dict[str, Tensor]]:
    found = {}
    for layer, own in student.overrides.items():
        with view.residency.layer(layer) as module:
            parameters = dict(module.named_parameters())
            found[layer] = {name: parameters[name].detach().clone() for name in own}
    return found


def replaced(kind: str, **options: object) -> Method:
    """A replacement trained on hidden states from its own start."""
    return lambda cut: trained(
        cut, cut.with_replacement(kind, **options), TrainingPhase(objective="hidden_mse", tokens=cut.long)
    )


def layer(*, batch: int = BATCH) -> Method:
    """LLM-Streamline's layer at the same cut: the last kept layer before it is what is trained, so no layer is added."""

    def method(cut: Cut) -> Made:
        span = Span(cut.span.start - 1, cut.span.stop)
        stage = TrainingPhase(objective="hidden_mse", tokens=cut.long)
        made = trained(cut, cut.with_replacement("layer", span=span), stage, batch=batch)
        return replace(made, new_parameters=0)  # The values belong to the kept layer itself.

    return method


@dataclass(frozen=True)
class Row:
    """A method; ``trains``: by gradients, so that it costs more than a fit."""

    method: Method
    trains: bool = False


ROWS: dict[str, Row] = {
    "none": Row(none),
    "Prune&Comp: scale": Row(repaired("magnitude", FitConfig(sinks="counted", keep="always"))),
    "ReplaceMe: map, least squares": Row(repaired("map", EQUAL)),
    "ReplaceMe: map, cosine": Row(map_by_cosine),
    "map": Row(repaired("map")),
    "LinearPatch: Hadamard ratios": Row(solved("hadamard", FitConfig(sinks="counted", solve="ratio", keep="always"))),
    "Hadamard, least squares": Row(solved("hadamard")),
    "Ghosted Layers: free map": Row(solved("free", EQUAL)),
    "free map": Row(solved("free")),
    "affine map": Row(solved("linear")),
    "affine map, rank 16": Row(solved("linear", rank=16)),
    "bias": Row(repaired("bias")),
    "refit": Row(repaired("refit")),
    "sweep": Row(repaired("sweep")),
    "sweep, plain weights": Row(repaired("sweep", FitConfig(weights="plain"))),
    "sweep without neurons of removed layers": Row(repaired("sweep", fit=Sweep(from_first_cut, Sites(MAPS), share=SHARE))),
    "the same, the whole change asked of the first layer": Row(repaired("sweep", fit=Sweep(from_first_cut, Sites(MAPS)))),
    "sweep + polish hidden": Row(polished("hidden_mse"), trains=True),
    "sweep + polish KL": Row(polished("forward_kl"), trains=True),
    "sweep + polish hidden + KL": Row(polished("hidden_mse", "forward_kl"), trains=True),
    "sweep + layer before the cut, polish hidden": Row(polished_layer, trains=True),
    "full recipe": Row(full, trains=True),
    "Adam on the swept maps, equal tokens": Row(control(equal="tokens"), trains=True),
    "Adam on the swept maps, equal time": Row(control(equal="time"), trains=True),
    "LLM-Streamline: layer": Row(layer(), trains=True),
    "LLM-Streamline: layer, one sample a step": Row(layer(batch=1), trains=True),
    "LLM-Streamline: random FFN": Row(replaced("ffn", form="paper"), trains=True),
    "FFN, residual": Row(replaced("ffn"), trains=True),
    "SwiGLU, residual": Row(replaced("swiglu"), trains=True),
}
"""Name to method. Those that train run at one ratio only unless asked for."""
