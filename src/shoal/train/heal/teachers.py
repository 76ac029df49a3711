"""Who answers for the teacher while a student is healed: the model itself, run beside the student, in memory or from disk."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from shoal.engine.families import find_layers
from shoal.engine.view import DecoderView
from shoal.train.heal.streams import Streams, run_model
from shoal.words.types import Batch

MOST_REMEMBERED = 1 << 29
"""Bytes of final states that a teacher keeps of the selection text: 64 k tokens of a model with 4,096 numbers each."""


class Teacher(Protocol):
    """Gives what the objectives read of the teacher."""

    def training(self, batch: dict[str, Tensor], boundaries: Iterable[int]) -> Streams:
        """Of a batch of the training text."""
        ...

    def selection(self, batch: dict[str, Tensor]) -> Tensor:
        """Logits (B, T, V) of a batch of the selection text."""
        ...


class FinalStates:
    """What a teacher's last layer made of the selection text, which every validation reads again: a second time only the head
    runs, on the same numbers. Kept on the CPU; text beyond :data:`MOST_REMEMBERED` bytes runs through all layers each time.
    """

    def __init__(self, view: DecoderView) -> None:
        self.view = view
        self._states: dict[bytes, Tensor] = {}
        self._n_bytes = 0

    def logits(self, batch: dict[str, Tensor], run: Callable[[tuple[int]], Streams]) -> Tensor:
        """Logits (B, T, V) of a batch.

        Args:
            run: the teacher on that batch, with the states at boundaries.
        """
        ids_BT, mask_BT = batch["input_ids"], batch.get("attention_mask")
        key = b"".join(str(one.shape).encode() + one.cpu().numpy().tobytes() for one in (ids_BT, mask_BT) if one is not None)
        held = self._states.get(key)
        if held is not None:
            return self.view.head(held.to(ids_BT.device), self.view.read(Batch(ids_BT, mask_BT)))
        made = run((self.view.n_layers,))
        state = made.states[self.view.n_layers].to("cpu", copy=True)
        n_bytes = state.numel() * state.element_size()
        if self._n_bytes + n_bytes <= MOST_REMEMBERED:
            self._states[key], self._n_bytes = state, self._n_bytes + n_bytes
        return made.logits_BTV


class RunningTeacher:
    """The teacher as a model in memory, in eval mode and without gradients."""

    def __init__(self, model: Any) -> None:
        self.model = model.requires_grad_(False).eval()
        self.layers = find_layers(model)[1]
        self._remembered = FinalStates(DecoderView(model))

    @torch.no_grad()
    def training(self, batch: dict[str, Tensor], boundaries: Iterable[int]) -> Streams:
        return run_model(self.model, list(self.layers), batch, boundaries)

    @torch.no_grad()
    def selection(self, batch: dict[str, Tensor]) -> Tensor:
        return self._remembered.logits(batch, lambda boundaries: self.training(batch, boundaries))


class StreamedTeacher:
    """The teacher with some of its layers in memory and the rest on disk, read once for every batch."""

    def __init__(self, view: DecoderView) -> None:
        self.view = view
        self._remembered = FinalStates(view)

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
        return self._remembered.logits(batch, lambda boundaries: self.training(batch, boundaries))
