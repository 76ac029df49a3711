"""Keys of a recipe that nothing reads: what the other choices leave without a reader, each with the reason.

A recipe file that gives such a key is refused, for what it asks would be dropped in silence; and a recipe is written without
them. Who reads what is said by the entries of the tables; here it is only asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from shoal.fit.fit_config import LINEAR_ERROR
from shoal.prune.prune_config import parse_prune
from shoal.recipes.reads import needs_scan, reads_calibration
from shoal.recipes.task_choice import asks_tasks
from shoal.select.table import SELECTORS

if TYPE_CHECKING:
    from shoal.recipes.recipe import Recipe

Unread = Iterator[tuple[str, str]]


def unread_keys(recipe: Recipe) -> dict[str, str]:
    """Dotted keys that nothing reads, each with the reason; a section stands for all that is below it."""
    found = dict(_of_training(recipe)) | dict(_of_choice(recipe))
    for name, section in (("prune", recipe.prune), ("heal", recipe.heal)):
        if section is not None:
            found |= {f"{name}.{key}": why for key, why in section.unread()}
    return found


def refuse_unread_keys(content: Mapping[str, Any], own: Recipe, recipe: Recipe, where: str) -> None:
    """Raises ValueError, in one line for all of them, where a file gives keys that its recipe does not read.

    Args:
        content: of the file, before it is laid over another recipe.
        own: the recipe of the file alone; a key that an option takes the reader from is no fault of the file.
        recipe: with the options.
    """
    of_file = unread_keys(own) if content else {}
    unread = {key: why for key, why in unread_keys(recipe).items() if key in of_file and _is_given(content, key)}
    found = [f"{key} is not read: {why}" for key, why in unread.items()]
    if found:
        raise ValueError(f"{where}: {'; '.join(found)}; leave {'it' if len(found) == 1 else 'them'} out")


def _of_training(recipe: Recipe) -> Unread:
    selector = SELECTORS.named(recipe.select)
    if recipe.training() is None:
        yield "train", "nothing is trained; add polish: kl, or a replacement"
    elif recipe.repair == "none" and not recipe.is_by_hand and not recipe.merges_layers and selector.is_contiguous:
        yield "train.several", f"select {recipe.select} cuts one span, so there is one part to train"
    fits = recipe.repair != "none" or not recipe.is_by_hand and (recipe.by == LINEAR_ERROR or selector.refits)
    if not fits:
        yield "fit", f"repair {recipe.repair} sets nothing"
    elif recipe.replace == "none":
        yield "fit.solve", "it is about the values of a replacement, and there is none"


def _of_choice(recipe: Recipe) -> Unread:
    from shoal.measure.unit_scores import is_unit_table
    from shoal.recipes.recipe import CHOOSING

    if recipe.is_by_hand:
        # The keys of the choice are refused beside named layers where the file is read; beside new layers they are unread.
        if recipe.grow is not None and recipe.layers is None and recipe.keep is None:
            yield from dict.fromkeys(CHOOSING, "layers are put in, so nothing is chosen").items()
        if not reads_calibration(recipe):
            yield "text.samples", "it is text to choose by, and the layers are named (a repair reads fit.tokens)"
        yield "observers", "nothing is scanned where the layers are named"
        return
    selector = SELECTORS.named(recipe.select)
    if not needs_scan(recipe):
        yield "observers", f"select {recipe.select} with guard {recipe.guard} reads no scan"
    if not reads_calibration(recipe):
        yield "text.samples", f"select {recipe.select} with guard {recipe.guard} reads no text to choose by"
    reads_tables, merges = "tables" in selector.reads, recipe.merges_layers
    if not reads_tables:
        yield "by", f"select {recipe.select} reads no score"
    if not selector.limits_spans:
        yield "max_spans", f"select {recipe.select} counts no spans; {_who('limits_spans')} does"
    if not merges:
        yield "merge", f"select {recipe.select} merges nothing"
    if merges:
        for key in (key for one in SELECTORS.values() for key in one.options if key not in selector.options):
            yield key, f"select {recipe.select} has no such size"
        yield "search.evaluations", f"select {recipe.select} tries merges until they meet the budget"
    elif not (selector.n_evaluations or asks_tasks(recipe) or reads_tables and is_unit_table(recipe.by)):
        yield "search", f"select {recipe.select} runs no sets"


def _who(flag: str) -> str:
    return ", ".join(name for name, one in SELECTORS.items() if getattr(one, flag))


def _is_given(content: Mapping[str, Any], key: str) -> bool:
    """Whether a file gives a key, or anything below a section, as keys or in the short form of a section."""
    name, _, inner = key.partition(".")
    value = content.get(name)
    if name == "prune" and isinstance(value, str):
        value = parse_prune(value)
    if not inner or not isinstance(value, Mapping):
        return value is not None and not inner and value != {}
    return value.get(inner) is not None
