"""Budgets: ``--drop 25%`` (of all parameters), ``8`` (layers), ``25%layers``, ``--params 6B``; all net of replacements.

A share or a size becomes the nearest reachable number of layers, ties to fewer layers removed; exact fractions, so that a
tie is a tie.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Literal

from shoal.edits.plan import structure_of
from shoal.edits.table import Edit
from shoal.select.model_size import ModelSize, PutBack, size_without
from shoal.words.counts import UNITS

BUDGET_FORMS = "25% (of all parameters), 8 (layers), 25%layers, or --params 6B"


@dataclass(frozen=True)
class Budget:
    """What was asked for.

    Attributes:
        kind: ``share`` of all parameters or ``layer_share`` of layers to remove (amount 0..1), ``layers`` to remove,
            ``parameters`` to be left.
        text: as the user wrote it.
    """

    kind: Literal["share", "layers", "layer_share", "parameters"]
    amount: Fraction
    text: str


@dataclass(frozen=True)
class ResolvedBudget:
    """A budget on one model.

    Attributes:
        n_net: layers the student has fewer than the source.
        n: layers absent from the student before its replacement is trained; these are selected and measured.
        n_layers: layers of the source.
        asked: the budget as written.
    """

    n_net: int
    n: int
    n_layers: int
    asked: str


def parse_budget(drop: str) -> Budget:
    """Read ``--drop``.

    Raises:
        ValueError: not one of the forms, or a share outside 0..100 %.
    """
    text = drop.strip()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)\s*(layers?)?", text)
    if match is None or (not match[2] and "." in match[1]):
        raise ValueError(f"--drop {drop!r} is not a budget; write {BUDGET_FORMS}")
    if not match[2]:
        return Budget("layers", Fraction(match[1]), text)
    share = Fraction(match[1]) / 100
    if not 0 < share < 1:
        raise ValueError(f"--drop {drop!r} needs a share above 0% and below 100%")
    return Budget("layer_share" if match[3] else "share", share, text)


def parse_parameters(params: str) -> Budget:
    """Read ``--params``: a target size such as ``6B``, ``350M``, ``1.5b`` or a plain number.

    Raises:
        ValueError: not a positive number with K, M or B.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmMbB]?)", params.strip())
    if match is None or not Fraction(match[1]):
        raise ValueError(f"--params {params!r} is not a size; write a number with K, M or B, such as 6B or 350M")
    return Budget("parameters", Fraction(match[1]) * UNITS[match[2].upper()], params.strip())


def resolve(
    budget: Budget,
    size: ModelSize,
    *,
    put_back: PutBack,
    removable: Sequence[int],
    n_most: int,
    layers_of: Callable[[int], Sequence[int]] | None = None,
) -> ResolvedBudget:
    """The number of layers that comes nearest to the budget.

    Args:
        removable: layers that may go.
        n_most: most layers that may be absent at once (fewer than ``removable`` where they must be consecutive).
        layers_of: the layers that go when n are absent; where layers differ in size the parameters are then exact.
            Without it every layer counts as the mean of the removable ones.
    Raises:
        ValueError: the budget removes nothing, or more than can be removed; says the allowed range.
    """
    # what is inherited is given back; a layer that starts as zero is one more to remove
    extra = put_back.layers - put_back.inherits
    n_net_most = n_most - extra
    if n_net_most < 1:
        raise ValueError(f"nothing can be removed: {n_most} of {size.n_layers} layers are free to go; protect fewer layers")

    @cache
    def gone(n_net: int) -> Fraction:
        if n_net <= 0:
            return Fraction(0)
        if layers_of is not None:
            return Fraction(size.total - size_without(size, layers_of(n_net + extra), put_back).parameters)
        mean = Fraction(sum(size.layers[layer] for layer in removable), len(removable))
        return mean * n_net - put_back.own_parameters  # of the layers it counts as, every one is as large as a removed one

    def cut(n_net: int) -> ResolvedBudget:
        return ResolvedBudget(n_net=n_net, n=n_net + extra, n_layers=size.n_layers, asked=budget.text)

    if budget.kind in ("layers", "layer_share"):
        target = budget.amount if budget.kind == "layers" else budget.amount * size.n_layers
        n_net = -int(-(target - Fraction(1, 2)) // 1)  # nearest, exact halves down
        if not 1 <= n_net <= n_net_most:
            raise ValueError(
                f"--drop {budget.text} removes {n_net} of {size.n_layers} layers; this model allows 1..{n_net_most} "
                f"({_percent(gone(1), size)}..{_percent(gone(n_net_most), size)} of all parameters)"
            )
        return cut(n_net)
    target = budget.amount * size.total if budget.kind == "share" else size.total - budget.amount
    n_net = min(range(n_net_most + 1), key=lambda n: (abs(gone(n) - target), n))
    beyond = n_net == n_net_most and target - gone(n_net) > (gone(n_net) - gone(n_net - 1)) / 2
    if n_net == 0 or beyond:
        option = "--params" if budget.kind == "parameters" else "--drop"
        asks = f"asks to remove {_percent(target, size)} of" if target > 0 else "is not below"
        raise ValueError(
            f"{option} {budget.text} {asks} {size.total:,} parameters; this model allows "
            f"1..{n_net_most} layers, {_percent(gone(1), size)}..{_percent(gone(n_net_most), size)} "
            f"({_rest(gone(n_net_most), size)}..{_rest(gone(1), size)} parameters left)"
        )
    return cut(n_net)


def realised(size: ModelSize, edits: Sequence[Edit], own_parameters: int = 0) -> str:
    """What a cut really removes: ``8 of 32 layers, 24.0% of all parameters (6,738,415,616 -> 5,119,356,928)``.

    Args:
        own_parameters: of each module that is no layer of the checkpoint.
    """
    after = size.after(structure_of(edits, size.n_layers), own_parameters)
    share = _percent(Fraction(size.total - after.parameters), size)
    removed = f"{size.n_layers - after.layers} of {size.n_layers} layers"
    return f"{removed}, {share} of all parameters ({size.total:,} -> {after.parameters:,})"


def _percent(parameters: Fraction, size: ModelSize) -> str:
    return f"{float(parameters / size.total):.1%}"


def _rest(gone: Fraction, size: ModelSize) -> str:
    return f"{round(size.total - gone):,}"
