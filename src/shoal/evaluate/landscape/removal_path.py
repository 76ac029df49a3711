"""The removal path: a layer's output maps scaled by 1 - t. At t = 1 the layer adds nothing, so removing it is a straight line.

An extension of layer-wise linear mode connectivity (arXiv 2307.06966) to models of another depth: the profile along the line
says whether the loss rises evenly on the way out, and its slope at the start how sensitive the model is to the layer.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from shoal.engine.student import Student
from shoal.engine.view import DecoderView, Reading
from shoal.evaluate.landscape.line import LinePoint, Removal
from shoal.fit.sites.of_layer import Sites
from shoal.measure.oracle import Oracle
from shoal.words.types import Unit

STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)


def removal_paths(oracle: Oracle, probe: Reading, *, layers: Sequence[int]) -> tuple[tuple[Removal, ...], tuple[str, ...]]:
    """The paths of some layers, and why those of others cannot be walked.

    Args:
        probe: a reading to try on which parameters write a layer's answer.
    """
    found: list[Removal] = []
    left: list[str] = []
    whole = oracle.measure([Student()])[0]
    for layer in layers:
        scaled, reasons = turned_down(oracle.view, layer, probe, STEPS[1:-1])
        left += [reason for reason in reasons if reason not in left]
        if not scaled:
            continue
        students = [Student(overrides={layer: values}) for values in scaled]
        students.append(Student(removed=frozenset({Unit("layer", layer)})))
        measured = [whole, *oracle.measure(students)]
        points = (LinePoint(t=t, loss=one.nll, kl=one.kl) for t, one in zip(STEPS, measured, strict=True))
        found.append(Removal(layer=layer, points=tuple(points)))
    return tuple(found), tuple(left)


@torch.no_grad()
def turned_down(
    view: DecoderView, layer: int, probe: Reading, steps: Sequence[float]
) -> tuple[list[Mapping[str, Tensor]], list[str]]:
    """Values of the layer with which both sublayers contribute 1 - t as much, for each t; none where one of them cannot.

    Returns: the values, and the reasons why there are none.
    """
    sites, reasons = Sites(("attn", "mlp")).of(view, layer, probe)
    if {site.kind for site in sites} != {"attn", "mlp"}:
        return [], [f"layer {layer}: {reason}" for reason in reasons]
    with view.residency.layer(layer) as module:
        parameters = {name: value.detach() for name, value in module.named_parameters()}
    made = [{name: value for site in sites for name, value in site.scaled(parameters, 1 - t).items()} for t in steps]
    return list(made), []
