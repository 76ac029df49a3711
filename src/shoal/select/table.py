"""The table of selectors. A new one is a file and a line here."""

from collections.abc import Callable
from functools import partial

from shoal.select.by_running import by_running
from shoal.select.deepest import deepest_layers
from shoal.select.disjoint import disjoint_spans
from shoal.select.lowest import lowest_units
from shoal.select.merging.by_merging import by_merging, rows_tried
from shoal.select.merging.laco import laco
from shoal.select.merging.sliding import sliding
from shoal.select.request import Reads, Selector
from shoal.select.search.evolution import Evolution
from shoal.select.search.greedy import Greedy
from shoal.select.search.greedy_refit import GreedyRefit
from shoal.select.search.one_shot import n_one_shot_evaluations, one_shot
from shoal.select.search.policy_gradient import PolicyGradient
from shoal.select.search.search_contract import Search
from shoal.select.search.surrogate import Surrogate
from shoal.select.span import span_by
from shoal.words.entries import Entries

FRONT = 0.4
"""As in the released program of FinerCut."""

VALUES, WEIGHTS = frozenset[Reads]({"values"}), frozenset[Reads]({"weights"})


def running(
    search: Search, about: str, n_evaluations: Callable[[int, int], int], *, refits: bool = False, paper: str = ""
) -> Selector:
    """The entry of a search that runs the model; see :class:`~shoal.select.request.Selector` for what it says."""
    return Selector(
        by_running(search, n_evaluations),
        about,
        takes_units=True,
        refits=refits,
        reads=VALUES,
        paper=paper,
        n_evaluations=n_evaluations,
    )


SELECTORS: Entries[Selector] = Entries(
    "selector",
    {
        "span": Selector(span_by, "best contiguous span by one score", is_contiguous=True, paper="LLM-Streamline, UIDL"),
        "lowest": Selector(lowest_units, "the units of lowest score, each on its own", takes_units=True, paper="ShortGPT"),
        "deepest": Selector(
            deepest_layers,
            "the deepest layers but the last, nothing is measured",
            is_contiguous=True,
            reads=frozenset(),
            paper="UIDL's simple rule",
        ),
        "disjoint": Selector(
            disjoint_spans, "best set of up to k separate spans, by the sum of their scores", limits_spans=True
        ),
        "greedy": running(
            Greedy(), "one unit after the other, each by running the model without it", Greedy().n_evaluations, paper="SLEB"
        ),
        "greedy-front": running(
            Greedy(front=FRONT),
            f"as greedy, but the first {FRONT:.0%} of the units stay until as many are off",
            Greedy(front=FRONT).n_evaluations,
            paper="FinerCut",
        ),
        "beam": running(
            Greedy(width=4), "as greedy, with the four best sets of each round kept", Greedy(width=4).n_evaluations
        ),
        "greedy-refit": running(
            GreedyRefit(),
            "as greedy, with what stays refitted after every unit that goes",
            GreedyRefit().n_evaluations,
            refits=True,
            paper="Prune&Comp",
        ),
        "surrogate": running(
            Surrogate(),
            "sets that a quadratic function fitted to all measured sets likes best, measured and fitted anew",
            Surrogate().n_evaluations,
        ),
        "one-shot": running(
            one_shot, "the units whose loss is lowest, each run without it once", n_one_shot_evaluations, paper="Reassessing"
        ),
        "evolution": running(
            Evolution(),
            "sets that swap units, the best of parents and children live on",
            Evolution().n_evaluations,
            paper="EvoPress",
        ),
        "policy-gradient": running(
            PolicyGradient(),
            "probabilities of units that follow the loss of drawn sets",
            PolicyGradient().n_evaluations,
            paper="Bypass",
        ),
        "laco": Selector(
            by_merging(laco),
            "groups of layers become one, from the top down, each tried by running",
            reads=WEIGHTS,
            paper="LaCo",
            n_evaluations=partial(rows_tried, laco),
            options=("merge.group", "merge.interval"),
        ),
        "sliding": Selector(
            by_merging(sliding),
            "a window from the top that grows while its layers can be one, each tried by running",
            reads=WEIGHTS,
            paper="sliding layer merging",
            n_evaluations=partial(rows_tried, sliding),
        ),
    },
)


def selects_merges(select: object) -> bool:
    """Whether a name is that of a selector that merges layers and has compared what it proposes by running it."""
    return isinstance(select, str) and select in SELECTORS and "weights" in SELECTORS[select].reads
