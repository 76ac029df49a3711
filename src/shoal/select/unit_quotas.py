"""From budgets to the goal of a choice among sublayers, which differ in what they hold."""

from collections.abc import Mapping
from fractions import Fraction

from shoal.select.amounts import Amounts
from shoal.select.budget import Budget, amounts_for
from shoal.select.model_size import ModelSize
from shoal.select.request import Request
from shoal.select.search.quotas import Quota, Quotas


def quotas_for(budget: Budget, size: ModelSize, request: Request, amounts: Mapping[str, Amounts]) -> Quotas:
    """When enough of the units of a request are off, for all budgets that hold together.

    Raises:
        ValueError: a share of layers, which are not what goes, or of what this model has not or what is not known of it.
    """
    return Quotas(tuple(_quota_for(one, size, request, amounts) for one in budget.all))


def _quota_for(budget: Budget, size: ModelSize, request: Request, amounts: Mapping[str, Amounts]) -> Quota:
    amount, units = float(budget.amount), request.free_units
    if budget.kind == "layers":
        return Quota(amount)
    if budget.kind == "layer_share":
        raise ValueError(f"--drop {budget.text}: --units {request.units} removes sublayers; write 25%sublayers, or 25%params")
    if budget.kind == "sublayer_share":
        return Quota(amount * 2 * size.n_layers)
    if budget.kind in ("share", "parameters"):
        return Quota(
            float(budget.wanted(Fraction(size.total))),
            {unit: float(size.of(unit)) for unit in units},
            "all parameters",
            float(size.total),
        )
    found = amounts_for(budget, amounts)
    wanted = float(budget.wanted(Fraction(found.total)))
    return Quota(wanted, {unit: found.of_unit.get(unit, 0.0) for unit in units}, found.about, found.total)
