"""Data-parallel training: every worker runs its share of a step's samples, and all of them take the same step.

Accelerate wraps the module of all trained parameters in PyTorch's DistributedDataParallel. What is trained is a layer or a
few, so each worker keeps all of it; the teacher is frozen and never part of the wrapped module.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import nn

from shoal.engine.workers import Workers


def data_parallel(trainees: nn.Module, workers: Workers, *, device: torch.device) -> nn.Module:
    """The trainees, called as before; with several workers, ``backward`` leaves the mean of all their gradients on each.

    Args:
        device: where the trainees run.
    Raises:
        ValueError: the launcher asks for a way of sharding that is not this one.
    """
    if workers.size == 1:
        return trainees
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.utils import DistributedType

    options = DistributedDataParallelKwargs(find_unused_parameters=_has_single_experts(trainees))
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no", kwargs_handlers=[options])
    if accelerator.distributed_type not in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise ValueError(
            f"the launcher asks for {accelerator.distributed_type.value}, and training is data-parallel; start with torchrun, "
            "or with accelerate launch --multi_gpu"
        )
    return cast(nn.Module, accelerator.prepare_model(trainees, device_placement=False))


def _has_single_experts(trainees: nn.Module) -> bool:
    """True where experts are modules of their own: one that no token of a worker was sent to has no gradient there at all."""
    return any(isinstance(one, nn.ModuleList) and name.endswith("experts") for name, one in trainees.named_modules())


def without_exchange(trainees: nn.Module) -> AbstractContextManager[None]:
    """Gradients of a backward inside the block stay here, to be exchanged with those of the next one outside."""
    if isinstance(trainees, nn.parallel.DistributedDataParallel):
        return trainees.no_sync()
    return nullcontext()
