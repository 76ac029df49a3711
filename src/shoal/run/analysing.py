"""A look at one model, or at two of one shape: removal paths, barriers, read-outs; in ``landscape.json`` and a page.

Each of the three has a file of its own and is recorded when it is done, so that a look that was stopped goes on behind it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from shoal.checkpoint.blended import write_blend
from shoal.checkpoint.new_folder import new_folder
from shoal.checkpoint.verify import verify
from shoal.engine.open import open_model
from shoal.engine.opening import Opening
from shoal.engine.view import DecoderView
from shoal.evaluate.landscape.line import Landscape, Removal
from shoal.fit.sites.of_layer import probe_of
from shoal.measure.oracle import Oracle
from shoal.recipes.recipe import Recipe
from shoal.recipes.recipe_file import load_recipe
from shoal.run.begin import open_folder
from shoal.run.folder import RunFolder, checkpoint_of
from shoal.run.job import Inputs, open_inputs
from shoal.run.refusals import refuse_place
from shoal.show.report.landscape_page import landscape_page
from shoal.words.progress import over_passes, tell
from shoal.words.records import stable_hash, write_atomically
from shoal.words.types import Batch

LANDSCAPE, PAGE = "landscape.json", "report.html"

AT_LEAST = 8
"""Batches of the read-outs, every second of which is held out, where there are as many samples."""


def analyse(
    model: str,
    out: Path,
    *,
    other: str | None = None,
    at: float | None = None,
    recipe: Recipe | None = None,
    opening: Opening = Opening(),
    overwrite: bool = False,
    command: str = "",
) -> Landscape:
    """Look at a model and, where there is another, at the way between the two.

    Args:
        model, other: folders, hub ids or run folders; two have to be of one shape, such as a cut and its healed student.
        at: writes the checkpoint that far between the two, into ``model/`` of the folder; 0 is the first, 1 the other.
        recipe: text, its seed and length; the default recipe unless given. Its model is not used.
        overwrite: parts that stand with other inputs may be replaced.
    Raises:
        ValueError: models of other shapes, too little text, and everything that opening models and text can meet.
    """
    if at is not None and (other is None or not 0 <= at <= 1):
        raise ValueError(f"--at {at:g} is a point between two models, 0..1; give A and B, and such a number")
    sources = [checkpoint_of(name) for name in (model, other) if name is not None]
    for source in sources:
        refuse_place(out, source)
    given = load_recipe("default") if recipe is None else recipe
    folder = open_folder(out, command=command, overwrite=overwrite)
    with folder.unless_refused():
        inputs = open_inputs(given.model_copy(update={"model": sources[0]}), opening.in_memory())
        look = _Look(inputs, folder)
        parts = [look.removal(), look.read_outs()]
    if other is not None:
        parts.append(look.between(other, sources[1]))
    if at is not None:
        look.write(sources[1], at)
    filled = {name: value for one in parts for name, value in one if name not in ("model", "other", "provenance") and value}
    found = Landscape(model=model, other=other, provenance=inputs.provenance(inputs.evaluation), **filled)
    found.save(folder / LANDSCAPE)
    write_atomically(folder / PAGE, landscape_page(found).encode())
    return found


class _Look:
    """The parts of a look, each run or read back."""

    def __init__(self, inputs: Inputs, folder: RunFolder) -> None:
        self.inputs, self.folder = inputs, folder
        self.batches = inputs.batches(inputs.evaluation)
        self.key = stable_hash(inputs.model_key, inputs.evaluation.data_hash)

    def removal(self) -> Landscape:
        from shoal.evaluate.landscape.removal_path import removal_paths

        def make() -> Landscape:
            view = self.inputs.view
            probe = probe_of(view, self.batches)
            oracle = self._oracle("removal paths", n_passes=view.n_layers + 1)
            found: list[Removal] = []
            left: list[str] = []
            for layer in range(view.n_layers):
                paths, reasons = removal_paths(oracle, probe, layers=[layer])
                found += paths
                left += [reason for reason in reasons if reason not in left]
            return self._part(removal=tuple(found), left=tuple(left))

        return self._run("removal", self.key, make)

    def read_outs(self) -> Landscape:
        from shoal.evaluate.landscape.read_out import read_outs

        def make() -> Landscape:
            n_layers = self.inputs.view.n_layers
            samples = self.inputs.evaluation
            batches = samples.batches(max(1, min(self.inputs.batch_size, samples.n_samples // AT_LEAST)))
            found = read_outs(self.inputs.view, batches, after_layer=lambda one: tell("read-outs", one + 1, n_layers))
            return self._part(read_outs=found)

        return self._run("read-outs", self.key, make)

    def between(self, name: str, source: str) -> Landscape:
        from shoal.evaluate.landscape.connectivity import WeightLine, barriers, blend, passes_between

        opened, seed = open_model(source, self.inputs.opened.opening), self.inputs.recipe.seed

        def make() -> Landscape:
            between = WeightLine(self.inputs.view, DecoderView(opened.model))
            oracle = self._oracle("between the two", n_passes=passes_between(self.inputs.view.n_layers))
            found = barriers(between, oracle, seed=seed)
            return self._part(other=name, blend=blend(between, oracle), barriers=found)

        return self._run("barriers", stable_hash(self.key, opened.fingerprint, seed), make)

    def write(self, source: str, t: float) -> None:
        """The checkpoint at ``t``, reloaded and compared with the model at that point of the line before it takes its name."""
        from shoal.evaluate.landscape.connectivity import WeightLine

        inputs, opened = self.inputs, open_model(source, self.inputs.opened.opening)
        key = stable_hash(inputs.opened.fingerprint, opened.fingerprint, t)
        if self.folder.is_done("model", key):
            return
        started = time.monotonic()
        line, ids_BT = WeightLine(inputs.view, DecoderView(opened.model)), inputs.evaluation.ids_NT[:2]
        self.folder.remove("model")
        with new_folder(self.folder / "model") as made:
            write_blend(inputs.opened.path, opened.path, t, made)
            (student,) = line.students([range(inputs.view.n_layers)], t)
            with line.rest_at(t):
                reference = inputs.view.logits(Batch(ids_BT), student=student)
            verify(made, ids_BT=ids_BT, reference=lambda ids: reference, opening=opened.opening)
        self.folder.finish("model", key, seconds=time.monotonic() - started, files=["model"])

    def _oracle(self, what: str, *, n_passes: int) -> Oracle:
        return Oracle(self.inputs.view, self.batches, after_batch=over_passes(what, n_passes * len(self.batches)))

    def _part(self, **found: object) -> Landscape:
        given = {"model": self.inputs.opened.name, "provenance": self.inputs.provenance(self.inputs.evaluation), **found}
        return Landscape.model_validate(given)

    def _run(self, name: str, key: str, make: Callable[[], Landscape]) -> Landscape:
        file = f"{name}.json"
        if self.folder.is_done(name, key):
            return Landscape.load(self.folder / file)
        started = time.monotonic()
        found = make()
        found.save(self.folder / file)
        self.folder.finish(name, key, seconds=time.monotonic() - started, files=[file])
        return found
