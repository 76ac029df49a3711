"""One shot: measure every unit on its own, then switch off those whose loss is lowest, all at once.

Source: the ranking by perplexity of Reassessing Layer Pruning (arXiv 2411.15558), and the one-shot choice that FinerCut
(arXiv 2405.18218) is compared with. It asks for M + 1 sets and cannot see that two units which are each free are not free
together.
"""

from shoal.select.search.search_contract import Aim, Ledger, first_that_may_go


def one_shot(ledger: Ledger, aim: Aim) -> None:
    """The units of lowest loss; where they may not go together, each that may go with those taken before it.

    Raises:
        ValueError: there are fewer evaluations than it takes.
    """
    alone = [frozenset({unit}) for unit in ledger.units]
    ledger.need(alone)
    singles = ledger.ranked(alone)
    ledger.values([first_that_may_go([unit for single in singles for unit in single], aim)])


def n_one_shot_evaluations(n_units: int, n: int) -> int:
    """All units alone, and the choice, which is one of them where a single unit goes."""
    return n_units + (n > 1)
