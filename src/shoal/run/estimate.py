"""How long a run will take, from a few seconds of measuring and a count of tokens and solves.

Four rates are measured on the machine as it is: a token through all layers, a token through the head with its comparison, fp32
products (the sums of a repair) and fp64 factorisations (its solves). The counts follow what the stages do. Where the cut will
lie is not known yet, so it is taken in the middle; what is said is minutes or hours, not seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from shoal.fit.table import repair_named
from shoal.train.heal.rates import usual_tokens
from shoal.words.model_shape import ModelShape
from shoal.words.records import Record

if TYPE_CHECKING:
    from shoal.prune.prune_config import PruneConfig
    from shoal.recipes.recipe import Recipe
    from shoal.run.job import Inputs
    from shoal.select.request import Request

PROBE_TOKENS, HEAD_TOKENS = 512, 64
PRODUCT_SIZE, FACTOR_SIZE = 768, 512
RIDGES_SOLVED, FOLDS = 3.5, 4
SPECTRUM = 2  # The condition and the effective rank of a fit take so many solves.
PASSES = 5  # A layer that is refitted runs before, after each of three solves, and once in the teacher.
TRAINING = 5  # A trained token takes so many forwards: of the student, its gradient, what is computed again, the teacher.
# The depths are those of teacher, student, and two smaller depths of the teacher.
SPEED_ROUNDS, NEW_TOKENS, DEPTHS = 10, 32, 2.7


class StageRates(Record):
    """Seconds per token through all layers and through the head with a comparison; flops per second of products and solves."""

    layers: float
    compared: float
    products: float
    solves: float


class Estimate(Record):
    """Seconds by stage, in the order they run."""

    stages: dict[str, float]

    @property
    def seconds(self) -> float:
        return sum(self.stages.values())

    def __str__(self) -> str:
        if self.seconds < 30:
            return f"about {max(1, round(self.seconds))} s"
        parts = ", ".join(f"{name} {minutes(seconds)}" for name, seconds in self.stages.items())
        return f"about {minutes(self.seconds)} min ({parts})"


def minutes(seconds: float) -> str:
    """``0.4``, ``7``, ``130``."""
    found = seconds / 60
    return f"{found:.1f}" if found < 2 else f"{found:.0f}"


def measure_rates(inputs: Inputs) -> StageRates:
    """Some seconds of work on this machine; one process measures for all that share the job."""
    return inputs.workers.from_first(lambda: _measured(inputs))


def _measured(inputs: Inputs) -> StageRates:
    import torch

    from shoal.measure.counted import head_blocks
    from shoal.measure.one_pass import compare_tokens
    from shoal.words.types import Batch

    view = inputs.view
    n = min(inputs.length, PROBE_TOKENS)
    ids = torch.zeros(1, n, dtype=torch.long)
    where = torch.zeros(1, n, dtype=torch.bool)
    where[:, :HEAD_TOKENS] = True

    ends: list[torch.Tensor] = []

    @torch.no_grad()
    def through_layers() -> None:
        *_, (_, end_BTD) = view.stream(view.read(Batch(ids)))
        ends[:] = [end_BTD]
        end_BTD.float().sum().item()  # The sum waits for a card.

    @torch.no_grad()
    def through_head() -> None:
        for _, (logits,) in head_blocks([view], ends, where):
            compare_tokens(logits, [logits], torch.zeros(len(logits), dtype=torch.long, device=logits.device))[
                0
            ].kl_N.sum().item()

    square = torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, device=view.device)
    positive = torch.eye(FACTOR_SIZE, dtype=torch.float64, device=view.device)
    per_token = _seconds(through_layers) / n
    return StageRates(
        layers=per_token,
        compared=_seconds(through_head) / min(n, HEAD_TOKENS),
        products=2 * PRODUCT_SIZE**3 / _seconds(lambda: (square @ square).sum().item()),
        solves=_solve_flops(FACTOR_SIZE, FACTOR_SIZE)
        / _seconds(lambda: torch.cholesky_solve(positive, torch.linalg.cholesky(positive)).sum().item()),
    )


def _seconds(work: Callable[[], object]) -> float:
    """The faster of two runs after one that warms up."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return max(min(times[1:]), 1e-9)


def estimate(inputs: Inputs, rates: StageRates, *, recipe: Recipe | None = None) -> Estimate:
    """Seconds of every stage of ``compress``.

    Args:
        recipe: in place of that of the inputs.
    """
    from shoal.run.asking import needs_scan, request_of
    from shoal.run.candidate_repair import ranking_sizes, repairs_candidates
    from shoal.run.job import default_samples
    from shoal.train.config import DEFAULT_TOKENS

    recipe, length = recipe or inputs.recipe, inputs.length
    n_layers = inputs.view.n_layers
    share = 1 / inputs.workers.size

    def tokens(slice: str, asked: int | None) -> float:
        return (asked or default_samples(slice, length, tokens=recipe.text.tokens)) * length * share

    n_scan, n_selection = tokens("calibration", recipe.text.samples), tokens("selection", recipe.text.selection)
    n_evaluation = tokens("evaluation", recipe.text.evaluation)
    judged = n_selection * 2 * (rates.layers + rates.compared)
    fit = recipe.fit.n_tokens(inputs.widest_map) * share
    stages = {"scan": n_scan * rates.layers * 1.1 * recipe.rounds} if needs_scan(recipe) else {}
    if not recipe.is_by_hand:
        stages |= _choosing(
            recipe, rates, n_layers=n_layers, n_scan=n_scan, n_searched=min(n_scan, recipe.search.tokens * share)
        )
        beside = _searching_beside(recipe, request_of(recipe, inputs.view), rates, n_scan=n_scan, share=share)
        stages |= {"search": stages.get("search", 0.0) + beside} if beside else {}
    if recipe.guard > 1:
        stages["tournament"] = recipe.guard * n_selection * (rates.layers + rates.compared)
        if repairs_candidates(recipe):
            lookups = n_scan * (rates.layers + n_layers * 4 * inputs.view.hidden_size**2 / rates.products)
            n_left, texts = (
                recipe.guard,
                [n * length * share for n in ranking_sizes(recipe.fit.n_tokens(inputs.widest_map) // length)],
            )
            stages["tournament"] = lookups
            for text in texts if n_left > 2 else texts[-1:]:
                stages["tournament"] += n_left * (_repair(inputs, recipe, rates, text, searches=False) + judged)
                n_left = max(2, -(-n_left // 2))
    if recipe.repair != "none":
        stages["repair"] = _repair(inputs, recipe, rates, fit, searches=recipe.fit.ridge is None) + judged
    if (trained := recipe.training()) is not None:
        stages["training"] = TRAINING * rates.layers * (trained.all_tokens() or DEFAULT_TOKENS) * share
    if recipe.prune is not None:
        stages["prune"] = _pruning(inputs, recipe.prune, rates, n_scan)
    if recipe.heal is not None:
        n_healing = recipe.heal.tokens or DEFAULT_TOKENS
        n_searching = usual_tokens(n_healing) if recipe.heal.lr == "auto" else 0
        stages["healing"] = TRAINING * rates.layers * (n_healing + n_searching) * share
    spoken = (
        SPEED_ROUNDS * DEPTHS * rates.layers * (min(PROBE_TOKENS, length) + 16 * NEW_TOKENS)
    )  # One token alone costs as much as 16 of many.
    measured = n_evaluation * (7 * rates.layers + 2.5 * rates.compared)
    stages["evaluation"] = measured + spoken
    return Estimate(stages=stages)


def _choosing(recipe: Recipe, rates: StageRates, *, n_layers: int, n_scan: float, n_searched: float) -> dict[str, float]:
    """Seconds of what the recipe runs or measures to choose by, beside the scan; of tokens to scan and to search on."""
    from shoal.recipes.task_choice import asks_tasks
    from shoal.run.unit_scoring import wanted_score
    from shoal.select.table import selector_named
    from shoal.words.types import UNIT_KINDS

    scored, n_read = wanted_score(recipe), _tokens_of_items(recipe) if asks_tasks(recipe) else n_searched
    if selector_named(recipe.select).n_evaluations is not None:
        n_sets = _searching(recipe.select, recipe, n_layers=n_layers)
        n_sets = min(n_sets, recipe.search.evaluations or n_sets)
        return {"search": _running_sets(n_sets, recipe.search.metric, rates, n_read)}
    if scored is not None and scored.of_values is not None:
        n_sets = scored.n_sets(n_layers * len(UNIT_KINDS[recipe.units]))
        return {"search": _running_sets(n_sets, scored.metric, rates, n_read)}
    if scored is None or scored.reads == "weights":
        return {}
    there_and_back = scored.reads == "gradients"
    return {"scores": (TRAINING * n_scan if there_and_back else n_searched) * rates.layers}


def _searching(selector: str, recipe: Recipe, *, n_layers: int) -> int:
    """Sets of a search that lets a quarter of the units go."""
    from shoal.select.table import selector_named
    from shoal.words.types import UNIT_KINDS

    searches, n_units = selector_named(selector).n_evaluations, n_layers * len(UNIT_KINDS[recipe.units])
    assert searches is not None, f"{selector} runs no set"
    return searches(n_units, max(1, n_units // 4))


def _searching_beside(recipe: Recipe, request: Request, rates: StageRates, *, n_scan: float, share: float) -> float:
    """Seconds of the search that competes with the selector; 0 where none does."""
    from shoal.run.searching import search_in_use
    from shoal.select.proposals import searches_beside

    if not searches_beside(request):
        return 0.0
    selector, metric, most = search_in_use(recipe, request)
    return _running_sets(_searching(selector, recipe, n_layers=request.n_layers), metric, rates, min(n_scan, most * share))


def _running_sets(n_sets: int, metric: str, rates: StageRates, n_tokens: float) -> float:
    """Seconds; a set runs the layers behind its first unit: half of them in the mean."""
    from shoal.measure.metrics import metric_named
    from shoal.measure.task_metric import TASK

    needs_head = metric == TASK or metric_named(metric).needs != "hidden"
    return n_sets * n_tokens * (rates.layers / 2 + rates.compared * needs_head)


def _pruning(inputs: Inputs, config: PruneConfig, rates: StageRates, n_tokens: float) -> float:
    """Seconds of setting weights of all layers to zero.

    A layer runs twice for its sums, as it is and with its zeros, and once more for each of the two where outliers divide the
    share. SparseGPT factorises and inverts the second moments of every map (4/3 n^3 and 1/3 n^3) and goes through its columns.
    """
    from shoal.prune.table import allocator_named, pruner_named

    view = inputs.view
    width = view.hidden_size
    wide = int(getattr(view.config, "intermediate_size", None) or 4 * width)
    reads = pruner_named(config.method).reads
    n_walks = (reads != "weights") + (allocator_named(config.allocate).reads == "inputs" and config.fixed_pattern is None)
    seconds = 2 * n_walks * n_tokens * rates.layers
    if reads == "moments":
        maps = [(width, width)] * 4 + [(width, wide)] * 2 + [(wide, width)]  # (inputs, outputs)
        sums = sum(2 * n**2 for n in (width, width, width, wide))  # Maps that read one tensor share its sums.
        seconds += view.n_layers * n_tokens * sums / rates.products
        seconds += view.n_layers * sum(5 * n**3 / 3 + n**2 * n_outputs for n, n_outputs in maps) / rates.solves
    return seconds


def _tokens_of_items(recipe: Recipe) -> float:
    """About how many tokens the answers to a recipe's tasks read: every option with its context."""
    from shoal.run.choosing_tasks import tasks_of

    items = [item for task in tasks_of(recipe) for item in task.items]
    return sum(len(item.ctx) + len(choice) for item in items for choice in item.choices) / CHARACTERS_PER_TOKEN


CHARACTERS_PER_TOKEN = 4


def _repair(inputs: Inputs, recipe: Recipe, rates: StageRates, n_tokens: float, *, searches: bool) -> float:
    """Seconds of one closed-form repair of a quarter of the layers, cut from the middle."""
    view = inputs.view
    n_layers, width = view.n_layers, view.hidden_size
    wide = int(getattr(view.config, "intermediate_size", None) or 4 * width)
    n_before = 3 * n_layers // 8
    shape = ModelShape(n_layers=n_layers, hidden=width, ffn=wide)
    size = repair_named(recipe.repair).size(shape, n_before)
    sites, n_refitted = size.solved, size.layers if size.solved else 0
    forwards = (n_before + n_layers // 4 + PASSES * n_refitted) / n_layers
    sums = n_refitted * sum(2 * n * (n + width) for n in sites)
    solved = (RIDGES_SOLVED if searches else 1) * FOLDS + SPECTRUM + 1
    solves = n_refitted * solved * sum(_solve_flops(n, 2 * width) for n in sites)
    return n_tokens * (forwards * rates.layers + sums / rates.products) + solves / rates.solves


def _solve_flops(n: int, n_outputs: int) -> float:
    return n**3 / 3 + 2 * n**2 * n_outputs
