"""The sites of one layer, solved one after the other; each solve stands only up to the lowest held-out error.

The error after a solve is measured by running the layer with its values on a held-out fold, not predicted. That same run gives
the sums of the next solve.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from shoal.engine.view import Reading
from shoal.fit.boundary_states import BoundaryStates, free
from shoal.fit.fit_config import FitConfig
from shoal.fit.fit_result import LayerFit, MapFit
from shoal.fit.held_out import LayerEnds, held_out, observe
from shoal.fit.sites.site import Site
from shoal.fit.solve import Solution
from shoal.fit.sums import N_FOLDS, Sums
from shoal.fit.walk import Here
from shoal.words.progress import over_passes
from shoal.words.types import Batch


@dataclass(frozen=True, eq=False)
class LayerSolver:
    """One layer of a walk with the states it should arrive at.

    Attributes:
        ends: what the layer reads, and where its output should arrive.
    """

    here: Here
    ends: LayerEnds
    config: FitConfig

    def solve(self, sites: Sequence[Site[Any]]) -> LayerSolution:
        """Solve the sites in order; its ``values`` are those of the solves that stand."""
        with self.here.view.residency.layer(self.here.layer) as module:
            parameters = {**dict(module.named_parameters()), **self.here.own}
        found = LayerSolution(self.config)
        values: dict[str, Tensor] = {}
        is_new, known = True, math.nan
        told = over_passes("refit a layer", (len(sites) + 1) * len(self.here.readings))
        for site in (*sites, None):
            if site is not None and found.solved and _holds(*found.solved[-1], site):
                continue
            outputs, error, sums = self._observe(values, site, told)
            # Where nothing was set since the last run its error is repeated: one from other samples would not be comparable.
            known = error if is_new else known
            found.add(values, outputs, known)
            if site is not None:
                if found.is_ruined:  # The next solve starts from the best values, not from ones that are worse than none.
                    found.taken_back.add(len(found.solved) - 1)
                    values, known = found.values, min(found.errors)
                    again, _, sums = self._observe(values, site, told)
                    free(again)
                solution = site.solve(sums, ridge=self.config.ridge)
                found.solved.append((site, solution))
                is_new = bool(solution.change_ED.any())
                if is_new:
                    values = {**values, **site.changed({**parameters, **values}, solution.change_ED)}
        return found

    def _observe(
        self, values: dict[str, Tensor], site: Site[Any] | None, told: Callable[[Batch], None]
    ) -> tuple[BoundaryStates, float, list[Sums]]:
        """Run the layer with ``values``: its outputs, the held-out error, and the sums per fold for the next solve."""
        needs = [] if site is None else [site.tap]

        def run(h_BTD: Tensor, reading: Reading) -> tuple[Tensor, Tensor | None]:
            output_BTD, seen = self.here.run(h_BTD, reading, values=values, needs=needs)
            told(reading.batch)
            return output_BTD, None if site is None else site.inputs(seen[site.tap])

        no_sums = None if site is None else functools.partial(site.no_sums, self.here.view.device)
        # The sums over all candidates for an MLP are large, so its folds are added up at once.
        n_sums = 1 if site is not None and site.form == "neurons" else N_FOLDS - 1
        # The last run only measures: where no layer follows, nobody reads the outputs of samples that are not held out.
        only_judges = site is None and self.here.is_last
        ends = held_out(self.here.view, self.ends) if only_judges else self.ends
        return observe(ends, run, config=self.config, no_sums=no_sums, n_sums=n_sums)


@dataclass(eq=False)
class LayerSolution:
    """What the solves of one layer found.

    Attributes:
        errors: held-out errors, before the first solve and after each.
        solved: the sites with their solutions, in order.
        taken_back: positions of those that left the layer worse than it was.
        values: new values of the solves that stand; empty: none does. ``outputs``: the states behind the layer with them.
    """

    config: FitConfig
    errors: list[float] = field(default_factory=list)
    solved: list[tuple[Site[Any], Solution]] = field(default_factory=list)
    taken_back: set[int] = field(default_factory=set)
    values: dict[str, Tensor] = field(default_factory=dict)
    outputs: BoundaryStates = ()

    @property
    def is_ruined(self) -> bool:
        """Whether the last solve left the layer worse than it was before the first one."""
        return self.config.keep == "if_better" and self.errors[-1] > self.errors[0]

    def add(self, values: dict[str, Tensor], outputs: BoundaryStates, error: float) -> None:
        """Take values with their outputs and error; of two outputs the worse ones are freed."""
        if not self.errors or error < min(self.errors) or self.config.keep == "always":
            values, self.values = self.values, values
            outputs, self.outputs = self.outputs, outputs
        free(outputs)
        self.errors.append(error)

    def record(self, here: Here, *, seconds: float) -> LayerFit:
        """The record of the layer, for people and files."""
        n_kept = self.errors.index(min(self.errors)) if self.config.keep == "if_better" else len(self.solved)
        return LayerFit(
            layer=here.layer,
            target=here.goal.boundary,
            share=here.goal.share,
            error_before=self.errors[0],
            error_after=self.errors[n_kept],
            maps=tuple(
                _record(site, found, error).model_copy(update={"taken_back": at in self.taken_back})
                for at, ((site, found), error) in enumerate(zip(self.solved, self.errors[1:], strict=True))
            ),
            n_kept=n_kept,
            seconds=seconds,
        )


def _holds(filled: Site[Any], solution: Solution, site: Site[Any]) -> bool:
    """Whether a solve would find nothing: the output map of an MLP that was just filled with neurons was solved with them."""
    return filled.form == "neurons" and site.kind == filled.kind and not math.isinf(solution.ridge)


def _record(site: Site[Any], solution: Solution, error: float) -> MapFit:
    return MapFit.of(solution, form=site.form, parameters=site.parameters, held_out_error=error)
