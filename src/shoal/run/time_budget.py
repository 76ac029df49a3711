"""``--time``: what to spend the time that is given on.

The repairs of the table say what may be spent on them; of all that, what takes longest and still leaves time for a first
healing is taken. The time that is left heals. A repair, a healing and numbers of tokens that were asked for stay as they are.
What was taken stands in ``recipe.yaml`` as plain numbers, so the run can be repeated on any machine, and a run that goes on
takes them from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from shoal.fit.table import REPAIRS
from shoal.recipes.recipe import Recipe
from shoal.recipes.recipe_file import load_recipe
from shoal.run.estimate import estimate, minutes
from shoal.run.job import Inputs
from shoal.run.optional_healing import FEWEST_HEALED, reason_of
from shoal.run.pace import Pace, StageRates
from shoal.train.heal.config import SHORT_HEAL_TOKENS, HealConfig

SAFETY = 0.8  # This share of the time is planned: an estimate may be off, and a run that ends late breaks a promise.
ROUND = 1024  # Tokens of a healing that time chooses are a multiple of it.


def in_time(
    inputs: Inputs, rates: StageRates, seconds: float, *, begun: Path | None = None, spare: HealConfig | None = None
) -> tuple[Inputs, str]:
    """The inputs with the best recipe of the ladder that is expected to end in time, and what was chosen, for people.

    Args:
        begun: ``recipe.yaml`` of a run that goes on: what it chose stands.
        spare: the healing that time which is left may go to where the recipe asks for none; as many of its tokens as fit.
    Raises:
        ValueError: the recipe has nothing that more or less time could be spent on.
    """
    recipe, planned = inputs.recipe, SAFETY * seconds
    healing = recipe.heal or (spare and _opened(spare, recipe))
    longest = _longest_healing(inputs) if healing is not None and healing.tokens is None else 0
    steps = ladder(recipe, FEWEST_HEALED if longest else None)
    if begun is not None:
        chosen = _chosen_before(begun, steps, healing if longest else None)
        is_missed = chosen.heal is None and spare is not None and spare.optional
        why = reason_of(begun.parent) if is_missed else ""
        return replace(inputs, recipe=chosen, not_healed=why), f"as this run began: {_said(chosen)}"

    def lasts(tried: Recipe) -> float:
        return estimate(Pace(replace(inputs, recipe=tried), rates)).seconds

    expected = [lasts(step) for step in steps]
    with_healing = [lasts(_healed(step, min(longest, SHORT_HEAL_TOKENS), healing)) for step in steps]
    least = min(range(len(steps)), key=lambda n: expected[n])
    chosen = steps[least]
    said = f"{_said(chosen)}, the least there is: {minutes(expected[least])} min are expected"
    for costs in (with_healing, expected):
        fitting = [n for n in range(len(steps)) if costs[n] <= planned]
        if fitting:
            most = max(fitting, key=lambda n: costs[n])
            chosen = _healing_longer(steps[most], planned - expected[most], longest, healing, lasts)
            said = _said(chosen)
            break
    if spare is not None and spare.optional and chosen.heal is None:
        of = "the time that is left is" if longest else "the text has"
        inputs = replace(inputs, not_healed=f"{of} less than the {FEWEST_HEALED:,} tokens of a first healing")
    return replace(inputs, recipe=chosen), said


def ladder(recipe: Recipe, n_healed: int | None = None) -> list[Recipe]:
    """Everything that time may be spent on: by the repair that the recipe names, or by all where it leaves the choice.

    Args:
        n_healed: tokens of a healing that the recipe asks for without their number.
    Raises:
        ValueError: nothing of what the recipe names takes more or less time.
    """
    asked, healing = REPAIRS.named(recipe.repair), recipe.heal
    is_open = healing is not None and healing.tokens is None
    if healing is not None and is_open:
        recipe = recipe.model_copy(update={"heal": healing.model_copy(update={"tokens": n_healed})})
    if not asked.efforts or recipe.replace != "none":
        if is_open:
            return [recipe]
        named = f"--replace {recipe.replace}" if recipe.replace != "none" else f"--repair {recipe.repair}"
        known = ", ".join(name for name, one in REPAIRS.items() if one.efforts)
        raise ValueError(
            f"--time chooses how much is spent on a repair ({known}) or a healing, and {named} has no such choice; leave one "
            "out, or add --heal"
        )
    told_twice = {other.comes_to for other in REPAIRS.values()}
    names = (
        [name for name, one in REPAIRS.items() if one.efforts and name not in told_twice] if asked.comes_to else [asked.name]
    )
    found = [
        {
            "repair": name,
            "guard": min(guard, recipe.guard),
            "fit": recipe.fit.model_copy(update={"tokens": recipe.fit.tokens or n}),
        }
        for name in names
        for guard, n in REPAIRS[name].efforts
    ]
    return [recipe.model_copy(update=changes) for i, changes in enumerate(found) if changes not in found[:i]]


def _longest_healing(inputs: Inputs) -> int:
    """The most tokens that time may heal: those of the text; 0 where it is too short."""
    n_tokens = inputs.training_for(None).n_tokens // ROUND * ROUND
    return n_tokens if n_tokens >= FEWEST_HEALED else 0


def _healed(recipe: Recipe, n_tokens: int, spare: HealConfig | None) -> Recipe:
    """With so many tokens of a healing, its own or the one that is spare; as it is where there are too few."""
    healing = recipe.heal or spare
    if healing is None or n_tokens < max(FEWEST_HEALED, healing.tokens or 0):
        return recipe
    return recipe.model_copy(update={"heal": healing.model_copy(update={"tokens": n_tokens})})


def _opened(spare: HealConfig, recipe: Recipe) -> HealConfig:
    """A healing that is optional no more and whose tokens time chooses; zeros that the recipe leaves stay."""
    keeps = spare.keep_zeros or recipe.leaves_zeros
    return spare.model_copy(update={"tokens": None, "optional": False, "keep_zeros": keeps})


def _healing_longer(
    recipe: Recipe, seconds: float, longest: int, spare: HealConfig | None, lasts: Callable[[Recipe], float]
) -> Recipe:
    """The recipe with a healing that takes so many seconds more."""
    if not longest:
        return recipe
    twice, once = (lasts(_healed(recipe, n * FEWEST_HEALED, spare)) for n in (2, 1))
    per_token = (twice - once) / FEWEST_HEALED
    n_tokens = (recipe.heal.tokens or 0 if recipe.heal is not None else 0) + int(seconds / per_token)
    return _healed(recipe, min(n_tokens // ROUND * ROUND, longest), spare)


def _chosen_before(begun: Path, steps: list[Recipe], spare: HealConfig | None) -> Recipe:
    """The recipe of a run that goes on. Raises ValueError where it is none that these options could have come to."""
    chosen = load_recipe(str(begun))
    for step in steps:
        allowed_too = []
        if spare is not None and chosen.heal is not None:
            longer = (step.heal or spare).model_copy(update={"tokens": chosen.heal.tokens})
            allowed_too = [step.model_copy(update={"heal": longer})]
        for allowed in [step, *allowed_too]:
            if chosen.to_yaml() == allowed.to_yaml():  # A recipe is written without the keys that nothing reads.
                return allowed
    raise ValueError(f"{begun} is of a run with other options; add --overwrite to replace it, or give another --out")


def _said(recipe: Recipe) -> str:
    """``repair sweep on 49,152 tokens, 4 candidates, then lora on 20,480 tokens``."""
    parts = [f"{recipe.guard} candidate{'s' * (recipe.guard != 1)}"]
    if recipe.repair != "none":
        on = f" on {recipe.fit.tokens:,} tokens" if recipe.fit.tokens else ""
        parts.insert(0, f"repair {recipe.repair}{on}")
    if recipe.heal is not None and recipe.heal.tokens:
        parts.append(f"then {recipe.heal.method} on {recipe.heal.tokens:,} tokens")
    return ", ".join(parts)
