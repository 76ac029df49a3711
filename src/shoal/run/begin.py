"""How every run begins: what can be refused is refused, what is decided is said, then the folder and the model are opened.

The library and each verb that opens a model for a run folder begin here, so an early refusal stands in one place.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from shoal.engine.opening import Opening
from shoal.engine.quantised import order_for
from shoal.engine.workers import join
from shoal.recipes.recipe import Recipe
from shoal.run.asked import asked_of
from shoal.run.folder import RunFolder
from shoal.run.healing.heal_bench import refuse_unhealable
from shoal.run.job import (
    SHARE_BESIDE_STUDENT,
    SHARE_FOR_WEIGHTS,
    Inputs,
    layers_in_memory,
    open_inputs,
    versions,
    weights_and_room,
)
from shoal.run.optional_healing import settled_healing
from shoal.run.refusals import check_budget, refuse_little_text, refuse_place, refuse_side_files
from shoal.words.numbers import in_bytes
from shoal.words.reading import at_home

Say = Callable[[str], None]
"""Takes one line for people."""

BUNDLED_TEXT = "Text: the bundled sample of public-domain books (give your own with --text)"


def say_nothing(line: str) -> None:
    """For programs, where nobody reads."""


def open_folder(out: Path, *, command: str = "", overwrite: bool = False) -> RunFolder:
    """The run folder, checked before anything is loaded."""
    from shoal import __version__

    return RunFolder(
        at_home(out), version=__version__, command=command, versions=versions(), overwrite=overwrite, workers=join()
    )


def open_to_choose(
    recipe: Recipe,
    out: Path,
    opening: Opening = Opening(),
    *,
    overwrite: bool = False,
    command: str = "",
    say: Say = say_nothing,
    share: float = SHARE_FOR_WEIGHTS,
) -> tuple[Inputs, RunFolder]:
    """Inputs and folder for stages that write no checkpoint.

    Args:
        say: told which text is read and how many layers are in memory, before the model is opened.
        share: most of the free memory that weights may take.
    Raises:
        ValueError: one line for anything the user can mend; then no new folder is left behind.
    """
    folder = open_unopened(recipe, out, overwrite=overwrite, command=command)
    say_text(recipe, say)
    with folder.unless_refused():
        if recipe.model is not None:
            opening = settled(recipe.model, opening, share=share, say=say)
        inputs = open_inputs(recipe, opening, share=share)
        folder.asked = asked_of(recipe, inputs.opened)
    if inputs.opened.quantised is not None:
        order = order_for(inputs.opened.quantised, inputs.opened.path)
        say(f"Quantised ({inputs.opened.quantised}): layers are taken out file to file, and nothing is repaired; {order}")
    return inputs, folder


def open_to_cut(
    recipe: Recipe,
    out: Path,
    opening: Opening = Opening(),
    *,
    overwrite: bool = False,
    command: str = "",
    say: Say = say_nothing,
) -> tuple[Inputs, RunFolder]:
    """As :func:`open_to_choose`, for stages that write a checkpoint and open it beside its teacher."""
    refuse_side_files(recipe)
    inputs, folder = open_to_choose(
        recipe, out, opening, overwrite=overwrite, command=command, say=say, share=SHARE_BESIDE_STUDENT
    )
    with folder.unless_refused():
        check_budget(inputs)
        inputs = settled_healing(inputs, folder)
        if not folder.record.stages:
            refuse_little_text(inputs)
            if inputs.recipe.heal is not None:
                refuse_unhealable(inputs, inputs.recipe.heal)
    if inputs.not_healed:
        say(f"Not healed: {inputs.not_healed}")
    return inputs, folder


def open_unopened(recipe: Recipe, out: Path, *, overwrite: bool = False, command: str = "") -> RunFolder:
    """The folder alone, for a plan that follows from config and names."""
    out = at_home(out)
    refuse_place(out, recipe.model)
    return open_folder(out, command=command, overwrite=overwrite)


def settled(model: str, opening: Opening, *, share: float, say: Say) -> Opening:
    """With what ``resident="auto"`` means here, said aloud; the same for all processes of a job. Others stay as they are."""
    if opening.resident != "auto":
        return opening
    workers = join()
    here = opening.for_process(workers)

    def decide() -> tuple[int | None, int, int]:
        return layers_in_memory(model, here, share=share), *weights_and_room(model, here)

    held, n_bytes, room = workers.from_first(decide)
    sizes = f"weights of {in_bytes(n_bytes)}, {in_bytes(room)} free"
    if held is None:
        say(f"Layers: all in memory ({sizes})")
        return opening.in_memory()
    say(f"Layers: {held} in memory, the others are read from disk as needed ({sizes}, of which {share:.0%} for weights)")
    return replace(opening, resident=str(held))


def say_text(recipe: Recipe, say: Say) -> None:
    """Say aloud that the text is not the user's own."""
    if not recipe.text.sources:
        say(BUNDLED_TEXT)
