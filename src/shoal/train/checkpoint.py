"""The state of a training run as one safetensors file: tensors by name, the rest as JSON in its header. No pickles.

One file, renamed into place, so a run that is killed at any moment finds either the old state or the new one. Layers run in
eval mode and the order of the text follows from the seed, so no random state is part of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from shoal.surgery.folder import is_full_disk, no_space
from shoal.train.result import CurvePoint
from shoal.train.trainee import Trainee
from shoal.types import Record

HEADER = "shoal.training"


class MemberProgress(Record):
    """Curve of one student, its best point so far, and sums of loss and gradient norm since the last point."""

    curve: tuple[CurvePoint, ...] = ()
    best_step: int = 0
    best_measure: float | None = None
    loss_sum: float = 0.0
    norm_sum: float = 0.0


class Progress(Record):
    """Where a run stands; ``key`` identifies its inputs."""

    key: str
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    members: tuple[MemberProgress, ...]

    @property
    def measured(self) -> bool:
        """True when the curve has a point at this step."""
        return bool(self.members[0].curve) and self.members[0].curve[-1].step == self.step


Best = Sequence[Mapping[str, Tensor]]


def save_checkpoint(
    path: Path, progress: Progress, *, members: Sequence[Trainee], optimizers: Sequence[torch.optim.Optimizer], best: Best
) -> None:
    """Write masters, optimiser moments, best values and progress under ``path``, atomically."""
    tensors: dict[str, Tensor] = {}
    for index, (member, optimizer, values) in enumerate(zip(members, optimizers, best, strict=True)):
        tensors.update({f"{index}.master.{name}": value for name, value in member.masters.state_dict().items()})
        tensors.update({f"{index}.best.{name}": value for name, value in values.items()})
        for number, state in optimizer.state_dict()["state"].items():
            tensors.update({f"{index}.adam.{number}.{name}": value for name, value in state.items()})
    save_tensors(path, tensors, {HEADER: progress.model_dump_json()})


def read_progress(path: Path, key: str) -> Progress:
    """Where the run of a checkpoint stands.

    Raises:
        ValueError: the file is damaged, or belongs to a training with other inputs.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER, "{}")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to train from the start") from None
    progress = Progress.from_json(header, where=f"header of {path}")
    if progress.key != key:
        raise ValueError(f"{path} belongs to a training with other options, model or text; delete it, or give another folder")
    return progress


def load_checkpoint(
    path: Path, key: str, *, members: Sequence[Trainee], optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[Progress, list[dict[str, Tensor]]]:
    """Restore masters and optimisers in place; return progress and best values.

    Raises:
        ValueError: as for :func:`read_progress`.
    """
    progress = read_progress(path, key)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    best = []
    for index, (member, optimizer) in enumerate(zip(members, optimizers, strict=True)):
        member.masters.load_state_dict(_under(tensors, f"{index}.master."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _under(tensors, f"{index}.adam.").items():
            number, _, field = name.partition(".")
            state.setdefault(int(number), {})[field] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        best.append(_under(tensors, f"{index}.best."))
    return progress, best


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file under its final name, or nothing. Written tensor by tensor, never held as bytes.

    Raises:
        ValueError: the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({name: value.detach().contiguous() for name, value in tensors.items()}, temporary, metadata=dict(metadata))
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        if not is_full_disk(error):
            raise
        temporary.unlink(missing_ok=True)  # first, so that the message says what the next try will find
        raise ValueError(no_space(path.parent, 0)) from None
    finally:
        temporary.unlink(missing_ok=True)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
