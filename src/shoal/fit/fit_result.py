"""What a closed-form repair leaves besides its values: per map how well it fits, per layer what it gained. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from shoal.words.numbers import number
from shoal.words.records import Record

if TYPE_CHECKING:
    from torch import Tensor

    from shoal.engine.student import Attached
    from shoal.fit.solve import Solution
    from shoal.fit.walk import Here


MapForm = Literal["weight", "output", "bias", "gain", "neurons", "scale", "module"]


class CannotRefit(ValueError):
    """Something has no exact closed form; the message says what and why."""


@dataclass(frozen=True, eq=False)
class Refitted:
    """What a repair found.

    Attributes:
        values: new ones per layer, by name inside the layer; layers without any are left out.
        layers: what each layer or module gained, front to back.
        skipped: sublayers that were left, each with its reason.
        attached: the student's replacement modules with new values; empty where none were set.
        ended_behind: as for :class:`FitResult`.
    """

    values: dict[int, dict[str, Tensor]]
    layers: tuple[LayerFit, ...]
    skipped: tuple[str, ...] = ()
    attached: tuple[Attached, ...] = ()
    ended_behind: int | None = None


class MapFit(Record):
    """One solve.

    Attributes:
        form: what was solved for: a map as a ``weight``, a map behind an ``output``, a ``bias``, the ``gain`` of a norm, the
            ``scale`` of the stream, the ``module`` in place of a span, or all ``neurons`` of an MLP, from several layers.
        parameters: names inside the layer.
        ridge: the ridge in units of the inputs' mean second moment; infinite: no change was best.
        r2, r2_folds: share of the weighted squared change that the map explains, in-sample and on folds left out in turn
            (None where none were).
        condition, effective_rank: condition number and effective rank of the inputs' second moments.
        scale: the scale of the stream after the cut, where that is what was solved for.
        n_tokens, n_sinks: counts over the text of the fit.
        held_out_error: error of the layer with this map refitted, as in :class:`LayerFit`.
        taken_back: the solve left the layer worse than it was, so the next one began without it.
    """

    form: MapForm = "weight"
    parameters: tuple[str, ...]
    ridge: float
    r2: float
    r2_folds: float | None
    condition: float
    effective_rank: float
    n_tokens: int
    n_sinks: int
    held_out_error: float
    scale: float | None = None
    taken_back: bool = False

    @classmethod
    def of(cls, solution: Solution, *, form: MapForm, parameters: tuple[str, ...], held_out_error: float) -> MapFit:
        """The record of a solution, with the error that running it left on held-out samples."""
        return cls(
            form=form,
            parameters=parameters,
            ridge=solution.ridge,
            r2=solution.r2,
            r2_folds=solution.r2_folds,
            condition=solution.condition,
            effective_rank=solution.effective_rank,
            n_tokens=solution.n_tokens,
            n_sinks=solution.n_sinks,
            held_out_error=held_out_error,
        )


class LayerFit(Record):
    """The refit of one layer; its output is fitted to the teacher's boundary ``target``.

    Attributes:
        share: the goal lies that part of the way from the teacher's boundary right behind this layer to ``target``. It is
            below 1 where a cut follows and layers behind it are fitted, too.
        error_before, error_after: weighted squared miss of that goal over its squared norm, on samples no fit has seen.
        maps: solves in order; ``n_kept`` of them, from the first, stand (0: none lowered the held-out error), but for those
            among them that were taken back.
        seconds: teacher's layers up to the target included.
    """

    layer: int
    target: int
    share: float = 1.0
    error_before: float
    error_after: float
    maps: tuple[MapFit, ...]
    n_kept: int
    seconds: float

    @property
    def standing(self) -> tuple[MapFit, ...]:
        """The solves whose values are in the layer."""
        return tuple(fit for fit in self.maps[: self.n_kept] if not fit.taken_back)

    @classmethod
    def of_one(cls, here: Here, solve: MapFit, *, before: float, stands: bool) -> LayerFit:
        """The record of a place where one thing is solved for, which stands or not; how long it took is not known yet."""
        return cls(
            layer=here.layer,
            target=here.goal.boundary,
            error_before=before,
            error_after=solve.held_out_error if stands else before,
            maps=(solve,),
            n_kept=int(stands),
            seconds=0.0,
        )


class FitResult(Record):
    """``fit.json``.

    Attributes:
        layers: front to back. ``skipped``: sublayers without an exact refit, each with its reason.
        ended_behind: the layer that a sweep ended behind, because those left would have gained next to nothing; None: it went
            to the last one.
        n_samples, n_tokens, data, data_hash: the text; a tenth of it is held out.
        kl_before, kl_after: KL to the teacher on ``selection`` without and with the repair; None: not asked for.
        kept: the repair stands; False: it was worse there and was undone.
        values_digest: of ``fit.safetensors``, made when it was written; empty where nothing was set.
    """

    repair: str
    layers: tuple[LayerFit, ...]
    skipped: tuple[str, ...] = ()
    ended_behind: int | None = None
    n_samples: int
    n_tokens: int
    data: str = ""
    data_hash: str = ""
    kl_before: float | None = None
    kl_after: float | None = None
    kept: bool = True
    seconds: float = 0.0
    values_digest: str = ""

    @property
    def name(self) -> str:
        """The repair as it was asked for, and what it came to here."""
        from shoal.fit.table import REPAIRS

        known = REPAIRS.get(self.repair)
        return f"{self.repair!r}, here {known.comes_to!r}," if known is not None and known.comes_to else repr(self.repair)

    def __str__(self) -> str:
        changed = [str(one.layer) for one in self.layers if one.n_kept]
        if not self.layers:
            return f"{self.repair!r}: {self.skipped[0] if self.skipped else 'nothing to do'}; the plain cut stands"
        said = f"{self.name} of layers {', '.join(changed) or 'none'} on {self.n_tokens:,} tokens, {self.seconds:.0f} s"
        if self.ended_behind is not None:
            said += f"; ended behind layer {self.ended_behind}, where it gained next to nothing"
        if self.kl_before is not None and self.kl_after is not None:
            said += f"; KL on selection {number(self.kl_before)} -> {number(self.kl_after)}"
        return said if self.kept else said + "; not better, undone"


def explained(fit: MapFit) -> str:
    """The share of the change that it explains, on folds left out where there are, for people."""
    return f"{fit.r2 if fit.r2_folds is None else fit.r2_folds:.2f}"


def what(fit: MapFit) -> str:
    """What was solved for, for people."""
    if fit.scale is not None:
        return f"the stream, times {fit.scale:.3g}"
    if fit.form == "module":
        return "the replacement"
    if fit.form == "neurons":
        return f"neurons of {fit.parameters[0].rpartition('.')[0].rpartition('.')[0] or 'the MLP'}"
    name = fit.parameters[0].removesuffix(".weight")
    return name if fit.form == "weight" or fit.form == "bias" else f"{fit.form} of {name}"
