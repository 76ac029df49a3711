"""The state of a training run as one safetensors file: tensors by name, the rest as JSON in its header. No pickles.

One file, renamed into place, so a run that is killed at any moment finds either the old state or the new one. Layers run in
eval mode and the order of the text follows from the seed, so no random state is part of it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shoal.engine.tensors import each_tensor, save_tensors
from shoal.train.parts import Trainee
from shoal.train.train_result import CurvePoint
from shoal.words.records import Record

HEADER = "shoal.training"


class MemberProgress(Record):
    """Curve of one student, its best point so far, and sums of loss and gradient norm since the last point."""

    curve: tuple[CurvePoint, ...] = ()
    best_step: int = 0
    best_measure: float | None = None
    loss_sum: float = 0.0
    norm_sum: float = 0.0


class TrainingProgress(Record):
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
    path: Path,
    progress: TrainingProgress,
    *,
    members: Sequence[Trainee],
    optimizers: Sequence[torch.optim.Optimizer],
    best: Best,
) -> None:
    """Write masters, optimiser moments, best values and progress under ``path``, atomically."""
    tensors: dict[str, Tensor] = {}
    for index, (member, optimizer, values) in enumerate(zip(members, optimizers, best, strict=True)):
        tensors.update({f"{index}.master.{name}": value for name, value in member.masters.state_dict().items()})
        tensors.update({f"{index}.best.{name}": value for name, value in values.items()})
        for number, state in optimizer.state_dict()["state"].items():
            tensors.update({f"{index}.adam.{number}.{name}": value for name, value in state.items()})
    save_tensors(path, tensors, {HEADER: progress.model_dump_json()})


def read_progress(path: Path, key: str) -> TrainingProgress:
    """Where the run of a checkpoint stands.

    Raises:
        ValueError: the file is damaged, or belongs to a training with other inputs.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER, "{}")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to train from the start") from None
    progress = TrainingProgress.from_json(header, where=f"header of {path}")
    if progress.key != key:
        raise ValueError(f"{path} belongs to a training with other options, model or text; delete it, or give another folder")
    return progress


def load_checkpoint(
    path: Path, key: str, *, members: Sequence[Trainee], optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[TrainingProgress, list[dict[str, Tensor]]]:
    """Restore masters and optimisers in place; return progress and best values.

    Raises:
        ValueError: as for :func:`read_progress`.
    """
    progress = read_progress(path, key)
    masters = [dict(member.masters.state_dict()) for member in members]
    best: list[dict[str, Tensor]] = [{} for _ in members]
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in members]
    for name, value in each_tensor(path):
        index, _, rest = name.partition(".")
        kind, _, rest = rest.partition(".")
        if kind == "master":
            masters[int(index)][rest].copy_(value)
        elif kind == "best":
            best[int(index)][rest] = value
        else:
            number, _, field = rest.partition(".")
            states[int(index)].setdefault(int(number), {})[field] = value
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress, best
