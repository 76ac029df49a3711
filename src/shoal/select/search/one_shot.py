"""One shot: measure every unit on its own, then switch off the n whose loss is lowest, all at once.

Source: the ranking by perplexity of Reassessing Layer Pruning (arXiv 2411.15558), and the one-shot choice that FinerCut
(arXiv 2405.18218) is compared with. It asks for M + 1 sets and cannot see that two units which are each free are not free
together.
"""

from __future__ import annotations

from shoal.select.search.base import Aim, Ledger


def one_shot(ledger: Ledger, aim: Aim) -> None:
    """The n units of lowest loss; a unit that may not go with those before it is passed over."""
    singles = [frozenset({unit}) for unit in ledger.units]
    off: frozenset = frozenset()
    for single in ledger.ranked([one for one in singles if aim.may_go(one)]):
        if len(off) < aim.n and aim.may_go(off | single):
            off |= single
    ledger.values([off])
