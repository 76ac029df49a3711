"""Time of every layer and sublayer on this machine: measured once per run folder, and then a cost like any other.

A batch of the calibration text goes through the layers one after the other. What is timed is a layer's own forward, and inside
it that of its attention and of its MLP where these are modules; of several rounds the median counts. The total adds the head.
So it is the time of a prefill; a decoding step reads the same weights for one token. On a card every reading waits for it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from shoal.engine.families import sublayer
from shoal.engine.view import DecoderView
from shoal.run.folder import RunFolder
from shoal.run.job import Inputs
from shoal.select.amounts import Amounts
from shoal.words.progress import tell
from shoal.words.records import Record, stable_hash
from shoal.words.types import Batch, Unit

FILE = "latency.json"
ROUNDS = 7


class UnitTimes(Record):
    """Milliseconds of one forward.

    Attributes:
        key: of the model and the machine they were measured on.
        total: of all layers and the head.
        units: by unit, such as ``attn.3``.
        n_tokens: that were read.
    """

    key: str
    device: str
    n_threads: int
    n_tokens: int
    total: float
    units: dict[str, float]


def measured_latency(inputs: Inputs, folder: RunFolder) -> Amounts:
    """The times that ``latency.json`` of the folder holds for this model, else measured and written there."""
    key = stable_hash("latency", inputs.model_key, inputs.length, torch.get_num_threads())

    def read() -> UnitTimes:
        path = folder / FILE
        known = UnitTimes.load(path) if path.exists() else None
        if known is not None and known.key == key:
            return known
        batch = inputs.batches(inputs.calibration.take(1))[0]
        found = unit_times(inputs.view, batch, key=key)
        found.save(path)
        return found

    times = inputs.workers.from_first(read)
    of_unit = {Unit(kind, int(index)): ms for kind, index, ms in _split(times.units)}  # type: ignore[arg-type]
    return Amounts(f"time of a forward over {times.n_tokens:,} tokens on {times.device}", times.total, of_unit)


def _split(units: Mapping[str, float]) -> Iterator[tuple[str, str, float]]:
    for name, ms in units.items():
        kind, _, index = name.partition(".")
        yield kind, index, ms


@torch.no_grad()
def unit_times(view: DecoderView, batch: Batch, *, key: str = "") -> UnitTimes:
    """Median milliseconds of every layer, of its sublayers, and of all together with the head; the first round warms up."""
    times: dict[Unit, list[float]] = {}
    heads: list[float] = []
    for round_ in range(ROUNDS + 1):
        reading = view.read(batch)
        h_BTD = reading.h_BTD
        for layer in range(view.n_layers):
            with view.residency.layer(layer) as module, _timed_inside(layer, module, view.device, times):
                started = _now(view.device)
                h_BTD = view.run_layer(layer, h_BTD, reading)
                times.setdefault(Unit("layer", layer), []).append(_now(view.device) - started)
        started = _now(view.device)
        view.head(h_BTD, reading)
        heads.append(_now(view.device) - started)
        tell("time of the layers", round_ + 1, ROUNDS + 1)
    medians = {unit: 1000 * statistics.median(found[1:]) for unit, found in times.items()}
    total = 1000 * statistics.median(heads[1:]) + sum(ms for unit, ms in medians.items() if unit.kind == "layer")
    device = torch.cuda.get_device_name(view.device) if view.device.type == "cuda" else str(view.device)
    return UnitTimes(
        key=key,
        device=device,
        n_threads=torch.get_num_threads(),
        n_tokens=batch.ids_BT.numel(),
        total=total,
        units={str(unit): ms for unit, ms in sorted(medians.items())},
    )


@contextmanager
def _timed_inside(layer: int, module: nn.Module, device: torch.device, times: dict[Unit, list[float]]) -> Iterator[None]:
    """Add the time of each sublayer that is a module, whenever the layer runs."""
    handles = []
    for kind in ("attn", "mlp"):
        found = sublayer(module, kind)
        if found is None:
            continue
        unit = Unit(kind, layer)
        started: list[float] = []

        def before(*args: Any, started: list[float] = started) -> None:
            started.append(_now(device))

        def after(*args: Any, unit: Unit = unit, started: list[float] = started) -> None:
            times.setdefault(unit, []).append(_now(device) - started.pop())

        handles += [found[1].register_forward_pre_hook(before), found[1].register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
