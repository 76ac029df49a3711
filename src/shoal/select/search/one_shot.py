"""One shot: measure every unit on its own, then switch off those whose loss is lowest, all at once.

Source: the ranking by perplexity of Reassessing Layer Pruning (arXiv 2411.15558), and the one-shot choice that FinerCut
(arXiv 2405.18218) is compared with. It asks for M + 1 sets and cannot see that two units which are each free are not free
together.
"""

from shoal.select.search.search_contract import Aim, Ledger, filled, first_that_may_go


def one_shot(ledger: Ledger, aim: Aim) -> None:
    """The units of lowest loss; where they may not go together, each that may go with those taken before it.

    Raises:
        ValueError: there are fewer evaluations than all units alone and, unless one is enough, their choice take.
    """
    alone = [frozenset({unit}) for unit in ledger.units]
    ledger.need(alone)
    order = [unit for single in ledger.ranked(alone) for unit in single]
    found = first_that_may_go(order, aim)
    # Where nothing may go, the plain choice says what was wanted.
    ledger.values([found if ledger.is_complete(found) else filled(frozenset(), order, aim.goal)])


def n_one_shot_evaluations(n_units: int, n: int) -> int:
    """All units alone, and the choice, which is one of them where a single unit goes."""
    return n_units + (n > 1)
