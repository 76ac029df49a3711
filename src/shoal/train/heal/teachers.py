"""Who answers for the teacher while a student is healed: the model itself, run beside the student, in memory or from disk."""

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from shoal.engine.families import find_layers
from shoal.engine.view import DecoderView
from shoal.train.heal.streams import Streams, run_model
from shoal.words.types import Batch


class Teacher(Protocol):
    """Gives what the objectives read of the teacher."""

    def training(self, batch: dict[str, Tensor], boundaries: Iterable[int]) -> Streams:
        """Of a batch of the training text."""
        ...

    def selection(self, batch: dict[str, Tensor]) -> Tensor:
        """Logits (B, T, V) of a batch of the selection text."""
        ...


class RunningTeacher:
    """The teacher as a model in memory, in eval mode and without gradients."""

    def __init__(self, model: Any) -> None:
        self.model = model.requires_grad_(False).eval()
        self.layers = find_layers(model)[1]

    @torch.no_grad()
    def training(self, batch: dict[str, Tensor], boundaries: Iterable[int]) -> Streams:
        return run_model(self.model, list(self.layers), batch, boundaries)

    @torch.no_grad()
    def selection(self, batch: dict[str, Tensor]) -> Tensor:
        return run_model(self.model, list(self.layers), batch).logits_BTV


class StreamedTeacher:
    """The teacher with some of its layers in memory and the rest on disk, read once for every batch."""

    def __init__(self, view: DecoderView) -> None:
        self.view = view

    @torch.no_grad()
    def training(self, batch: dict[str, Tensor], boundaries: Iterable[int]) -> Streams:
        asked, states = set(boundaries), {}
        reading = self.view.read(Batch(batch["input_ids"], batch.get("attention_mask")))
        h_BTD = reading.h_BTD
        for boundary, h_BTD in self.view.stream(reading):
            if boundary in asked:
                states[boundary] = h_BTD
        return Streams(self.view.head(h_BTD, reading), states)

    @torch.no_grad()
    def selection(self, batch: dict[str, Tensor]) -> Tensor:
        return self.training(batch, ()).logits_BTV
