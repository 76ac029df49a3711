"""What a sweep set so far, a pair of files for each layer, so that a run that was killed solves no finished layer again.

A layer that is read back is set to its values as they were; its outputs are computed anew by running it, which gives the bits
of the run that solved it. So a sweep that goes on loses at most the layer it was in.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from shoal.engine.tensors import each_tensor, save_tensors
from shoal.engine.workers import ALONE, Workers
from shoal.fit.fit_result import LayerFit
from shoal.words.records import Record


class LayerRecord(Record):
    """``layer-0011.json``: the record of a fitted layer, and why sublayers of it were left."""

    fit: LayerFit
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class FittedLayer:
    """A layer as its fit left it; ``values`` by name inside the layer, empty where none stands."""

    record: LayerRecord
    values: Mapping[str, Tensor] = field(default_factory=dict)


class KeptLayers:
    """The fitted layers of one sweep on disk.

    Args:
        folder: of this sweep alone: its name stands for everything the values depend on.
        workers: the processes of the job; the first alone writes.
    """

    def __init__(self, folder: Path, *, workers: Workers = ALONE) -> None:
        self._folder, self._workers = folder, workers

    def read(self, layer: int, *, device: torch.device | str = "cpu") -> FittedLayer | None:
        """What an earlier sweep made of a layer, on every process; None: nothing yet."""
        found = self._workers.from_first(lambda: self._read(layer))
        if found is None:
            return None
        # Values are sent from memory: from a card they would arrive on the first worker's card in every process.
        return replace(found, values={name: value.to(device) for name, value in found.values.items()})

    def write(self, layer: int, found: FittedLayer) -> None:
        """Values first: a layer counts as done when its record is there."""

        def write() -> None:
            file = self._file(layer)
            if found.values:
                save_tensors(file, found.values)
            found.record.save(file.with_suffix(".json"))

        self._workers.on_first(write)

    def clear(self) -> None:
        """Forget all of them: what they are for is written elsewhere."""
        self._workers.on_first(lambda: shutil.rmtree(self._folder, ignore_errors=True))

    def _read(self, layer: int) -> FittedLayer | None:
        file = self._file(layer)
        if not file.with_suffix(".json").exists():
            return None
        record = LayerRecord.load(file.with_suffix(".json"))
        values = dict(each_tensor(file)) if record.fit.n_kept and file.exists() else {}
        return FittedLayer(record, values)

    def _file(self, layer: int) -> Path:
        return self._folder / f"layer-{layer:04}.safetensors"
