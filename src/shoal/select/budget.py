"""Budgets: ``--drop 25%`` (of all parameters), ``8`` (layers), ``25%layers``, ``25%kv``, ``--params 6B``; net of replacements.

A share or a size becomes the nearest reachable number of layers, ties to fewer layers removed; exact fractions, so that a
tie is a tie. Of several budgets, ``20%params,25%kv``, each has to be reached, so the one that asks for most layers decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import Literal

from shoal.edits.plan import structure_of
from shoal.edits.table import Edit
from shoal.select.amounts import Amounts, amount_of_layers
from shoal.select.model_size import ModelSize, PutBack, size_without
from shoal.words.counts import UNITS
from shoal.words.reading import shortened

BUDGET_FORMS = (
    "25% or 25%params (of all parameters), 8 (layers, or other --units), 25%layers, 25%sublayers, 25%kv, 25%macs, 25%latency, "
    "25%active (parameters that a token meets), 2GB (of weights), several with commas, or a target: --params 6B, --size 4GB"
)
BYTES = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
NUMBER = r"(\d{1,18}(?:\.\d{1,18})?)"
"""More digits than any model has parameters, and fewer than a float or the interpreter has room for."""

BudgetKind = Literal[
    "share", "layers", "layer_share", "parameters", "sublayer_share", "kv", "macs", "latency", "active", "active_left", "bytes",
    "bytes_left",
]  # fmt: skip
SHARES: dict[str, BudgetKind] = {
    "": "share",
    "params": "share",
    "layers": "layer_share",
    "sublayers": "sublayer_share",
    "kv": "kv",
    "macs": "macs",
    "latency": "latency",
    "active": "active",
}
"""What a percentage may be of, by the word behind it."""

MEASURED: frozenset[BudgetKind] = frozenset({"kv", "macs", "latency", "active", "active_left", "bytes", "bytes_left"})
"""Kinds that are known of an opened model alone."""

TARGETS: dict[BudgetKind, str] = {"parameters": "--params", "active_left": "--params", "bytes_left": "--size"}
"""Kinds that say what is to be left, with their options; of the others ``--drop`` says what goes."""


@dataclass(frozen=True)
class Budget:
    """What was asked for.

    Attributes:
        kind: ``layers`` (or other units) or ``bytes`` of weights to remove; ``parameters``, ``active_left`` (those that a token
            meets) or ``bytes_left`` to be left; all others are shares to remove (amount 0..1): ``share`` of all parameters,
            ``layer_share``, ``sublayer_share``, and those of the cache of keys and values (``kv``), of multiply-accumulates
            per token (``macs``), of measured time (``latency``) and of the parameters that a token meets (``active``).
        text: as the user wrote it, all budgets that belong together.
        also: further budgets that have to be reached as well.
    """

    kind: BudgetKind
    amount: Fraction
    text: str
    also: tuple[Budget, ...] = ()

    @property
    def resource(self) -> str:
        """The name of the amounts that it is counted in, where it is counted in such."""
        return self.kind.removesuffix("_left")

    def wanted(self, total: Fraction) -> Fraction:
        """How much is to go of so much in all; not above 0 where a target is no less than there is."""
        if self.kind in TARGETS:
            return total - self.amount
        return self.amount if self.kind in ("layers", "bytes") else self.amount * total

    @property
    def all(self) -> tuple[Budget, ...]:
        """It and those beside it."""
        return (self, *self.also)


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
    """Read ``--drop``, one budget or several with commas.

    Raises:
        ValueError: not one of the forms, a share outside 0..100 %, or two budgets of one kind.
    """
    first, *others = found = [_parse_one(part, drop) for part in drop.split(",")]
    kinds = [one.kind for one in found]
    twice = next((one for one in found if kinds.count(one.kind) > 1), None)
    if twice is not None:
        raise ValueError(f"--drop {shortened(drop)!r} holds two budgets of one kind ({twice.kind}); give one of each")
    return replace(first, text=drop.strip(), also=tuple(others))


def _parse_one(part: str, drop: str) -> Budget:
    text = part.strip()
    size = re.fullmatch(NUMBER + r"\s*([A-Za-z]+)", text)
    if size is not None and size[2].upper() in BYTES:
        if not Fraction(size[1]):
            raise ValueError(f"--drop {shortened(drop)!r} removes nothing; write {BUDGET_FORMS}")
        return Budget("bytes", Fraction(size[1]) * BYTES[size[2].upper()], text)
    match = re.fullmatch(NUMBER + r"\s*(%?)\s*([a-z]*)", text)
    word = "" if match is None else {"layer": "layers", "sublayer": "sublayers", "parameters": "params"}.get(match[3], match[3])
    is_count = match is not None and not match[2] and "." not in match[1] and word in ("", "layers")
    if match is None or not (is_count or (match[2] and word in SHARES)):
        raise ValueError(f"--drop {shortened(drop)!r} is not a budget; write {BUDGET_FORMS}")
    if is_count:
        return Budget("layers", Fraction(match[1]), text)
    share = Fraction(match[1]) / 100
    if not 0 < share < 1:
        raise ValueError(f"--drop {shortened(drop)!r} needs a share above 0% and below 100%")
    return Budget(SHARES[word], share, text)


def parse_parameters(params: str) -> Budget:
    """Read ``--params``: a target size such as ``6B``, ``350M``, ``1.5b``, a plain number, or ``2B active``.

    Raises:
        ValueError: not a positive number with K, M or B.
    """
    match = re.fullmatch(NUMBER + r"\s*([kKmMbB]?)\s*(active)?", params.strip())
    if match is None or not Fraction(match[1]):
        raise ValueError(
            f"--params {shortened(params)!r} is not a size; write a number with K, M or B, such as 6B, 350M or, of a mixture "
            "of experts, '2B active'"
        )
    return Budget("active_left" if match[3] else "parameters", Fraction(match[1]) * UNITS[match[2].upper()], params.strip())


def parse_size(size: str) -> Budget:
    """Read ``--size``: the bytes of weights that are to be left, such as ``4GB`` or ``500MB``.

    Raises:
        ValueError: not a positive number of bytes.
    """
    match = re.fullmatch(NUMBER + r"\s*([A-Za-z]+)", size.strip())
    if match is None or match[2].upper() not in BYTES or not Fraction(match[1]):
        raise ValueError(f"--size {shortened(size)!r} is not a size; write a number with MB or GB (or MiB, GiB), such as 4GB")
    return Budget("bytes_left", Fraction(match[1]) * BYTES[match[2].upper()], size.strip())


def resolve(
    budget: Budget,
    size: ModelSize,
    *,
    put_back: PutBack,
    removable: Sequence[int],
    n_most: int,
    layers_of: Callable[[int], Sequence[int]] | None = None,
    amounts: Mapping[str, Amounts] | None = None,
) -> ResolvedBudget:
    """The number of layers that comes nearest to the budget; of several budgets that which asks for most.

    Args:
        removable: layers that may go.
        n_most: most layers that may be absent at once (fewer than ``removable`` where they must be consecutive).
        layers_of: the layers that go when n are absent; where layers differ in size the parameters are then exact.
            Without it every layer counts as the mean of the removable ones.
        amounts: of what budgets other than layers and parameters are shares of, by their kind.
    Raises:
        ValueError: the budget removes nothing, or more than can be removed; says the allowed range.
    """
    # A replacement that copies a layer keeps it; one that starts as zero is one layer more.
    extra = put_back.layers - put_back.inherits
    reach = _Reach(size, put_back, tuple(removable), n_most - extra, extra, layers_of, amounts or {})
    if reach.n_most < 1:
        raise ValueError(f"nothing can be removed: {n_most} of {size.n_layers} layers are free to go; protect fewer layers")
    n_net = max(_nearest(one, reach) for one in budget.all)
    return ResolvedBudget(n_net=n_net, n=n_net + extra, n_layers=size.n_layers, asked=budget.text)


@dataclass(frozen=True)
class _Reach:
    """How much goes with n layers; arguments as for :func:`resolve`.

    Attributes:
        n_most: most layers that the student may have fewer.
        extra: layers that are absent beyond those.
    """

    size: ModelSize
    put_back: PutBack
    removable: tuple[int, ...]
    n_most: int
    extra: int
    layers_of: Callable[[int], Sequence[int]] | None
    amounts: Mapping[str, Amounts]

    def parameters(self, n_net: int) -> Fraction:
        if n_net <= 0:
            return Fraction(0)
        if self.layers_of is not None:
            after = size_without(self.size, self.layers_of(n_net + self.extra), self.put_back)
            return Fraction(self.size.total - after.parameters)
        mean = Fraction(sum(self.size.layers[layer] for layer in self.removable), len(self.removable))
        return mean * n_net - self.put_back.own_parameters  # Each of the layers it counts as is as large as a removed one.

    def other(self, kind: str, n_net: int) -> Fraction:
        """Of what a budget of another kind is a share of, put-back layers included."""
        found = self.amounts[kind]
        if n_net <= 0:
            return Fraction(0)
        if self.layers_of is not None:
            absent = n_net + self.extra
            return Fraction(amount_of_layers(found, self.layers_of(absent))) * n_net / absent
        return Fraction(amount_of_layers(found, self.removable)) * n_net / len(self.removable)


def _nearest(budget: Budget, reach: _Reach) -> int:
    size, most = reach.size, reach.n_most
    if budget.kind in ("layers", "layer_share", "sublayer_share"):  # A layer is two sublayers of twice as many.
        target = budget.amount if budget.kind == "layers" else budget.amount * size.n_layers
        n_net = -int(-(target - Fraction(1, 2)) // 1)  # The nearest number is taken, exact halves go down.
        if not 1 <= n_net <= most:
            raise ValueError(
                f"--drop {budget.text} removes {n_net} of {size.n_layers} layers; this model allows 1..{most} "
                f"({_percent(reach.parameters(1), size)}..{_percent(reach.parameters(most), size)} of all parameters)"
            )
        return n_net
    if budget.kind not in ("share", "parameters"):
        return _nearest_amount(budget, reach)
    gone = cache(reach.parameters)
    target = budget.wanted(Fraction(size.total))
    n_net, beyond = _closest(gone, target, most)
    if n_net == 0 or beyond:
        option = "--params" if budget.kind == "parameters" else "--drop"
        asks = f"asks to remove {_percent(target, size)} of" if target > 0 else "is not below"
        raise ValueError(
            f"{option} {budget.text} {asks} {size.total:,} parameters; this model allows "
            f"1..{most} layers, {_percent(gone(1), size)}..{_percent(gone(most), size)} "
            f"({_rest(gone(most), size)}..{_rest(gone(1), size)} parameters left)"
        )
    return n_net


def _nearest_amount(budget: Budget, reach: _Reach) -> int:
    """Raises ValueError: there is none of it, it is not known, or the share is out of reach."""
    found = amounts_for(budget, reach.amounts)
    total, asked = Fraction(found.total), f"{TARGETS.get(budget.kind, '--drop')} {budget.text}"
    target = budget.wanted(total)
    n_net, beyond = _closest(lambda n: reach.other(budget.resource, n), target, reach.n_most)
    if n_net == 0 or beyond:
        least, all_of_it = (float(reach.other(budget.resource, n) / total) for n in (1, reach.n_most))
        asks = f"asks to remove {float(target / total):.1%} of" if target > 0 else f"is not below {float(total):,.0f},"
        raise ValueError(
            f"{asked} {asks} the {found.about}; this model allows 1..{reach.n_most} layers, {least:.1%}..{all_of_it:.1%} of it"
        )
    return n_net


def amounts_for(budget: Budget, amounts: Mapping[str, Amounts]) -> Amounts:
    """What a budget is counted in. Raises ValueError: the model has none of it, or it is not known."""
    found, asked = amounts.get(budget.resource), f"{TARGETS.get(budget.kind, '--drop')} {budget.text}"
    if found is None:
        raise ValueError(f"{asked} is counted in {budget.resource}, which is known of an opened model alone")
    if not found.total:
        raise ValueError(f"{asked}: this model has no {found.about}; give another budget")
    return found


def _closest(gone: Callable[[int], Fraction], target: Fraction, n_most: int) -> tuple[int, bool]:
    """The number of layers whose amount is nearest to a target, and whether the target is out of reach above it."""
    n_net = min(range(n_most + 1), key=lambda n: (abs(gone(n) - target), n))
    return n_net, n_net == n_most and target - gone(n_net) > (gone(n_net) - gone(n_net - 1)) / 2


def realised(size: ModelSize, edits: Sequence[Edit], own_parameters: int = 0) -> str:
    """What a cut really removes: ``8 of 32 layers, 24.0% of all parameters (6,738,415,616 -> 5,119,356,928)``.

    Args:
        own_parameters: of each module that is no layer of the checkpoint.
    """
    structure = structure_of(edits, size.n_layers)
    after = size.after(structure, own_parameters)
    share = _percent(Fraction(size.total - after.parameters), size)
    removed = f"{size.n_layers - after.layers} of {size.n_layers} layers"
    if any(slot.off for slot in structure):
        n_off = 2 * size.n_layers - sum(2 - len(slot.off) for slot in structure)
        removed = f"{n_off} of {2 * size.n_layers} sublayers ({n_off / (2 * size.n_layers):.1%}; whole layers are two each)"
    return f"{removed}, {share} of all parameters ({size.total:,} -> {after.parameters:,})"


def _percent(parameters: Fraction, size: ModelSize) -> str:
    return f"{float(parameters / size.total):.1%}"


def _rest(gone: Fraction, size: ModelSize) -> str:
    return f"{round(size.total - gone):,}"
