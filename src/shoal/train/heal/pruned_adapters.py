"""PRILoRA's pruning of adapters: every few steps the least important entries of each A are set to zero.

Importance of A[i, j] is |A[i, j]| times the running norm of input j (the score of Wanda, on A); zeroed entries may grow back.
Source: arXiv 2401.11316. The unit within which the paper ranks entries is not known to us; here it is one matrix.
Shapes: R rank, D inputs, N tokens.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

NORMS_FILE = "input_norms.safetensors"


def pruned(a_RD: Tensor, norms_D: Tensor, share: float) -> Tensor:
    """A with the lowest share of its entries by ``|A| * norm`` at zero; of equal entries the first go."""
    n = int(share * a_RD.numel())
    lowest = (a_RD.abs() * norms_D).flatten().argsort(stable=True)[:n]
    return a_RD.flatten().index_fill(0, lowest, 0.0).reshape(a_RD.shape)


class PruneAdapters(TrainerCallback):
    """Watches the inputs of every adapter in training and prunes its A.

    Args:
        share: of the entries that are zeroed, ``every`` so many steps.
        decay: of the running norm, per forward: ``m <- decay m + (1 - decay) ||x_j||``.
    """

    def __init__(self, model: Any, *, share: float, every: int, decay: float) -> None:
        self.share, self.every, self.decay = share, every, decay
        self.norms: dict[str, Tensor] = {}
        self.maps: dict[str, nn.Linear] = {}
        for name, module in model.named_modules():
            if name.endswith(".lora_A.default"):
                self.maps[name] = module
                module.register_forward_pre_hook(self._watch(name))

    def _watch(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if module.training and torch.is_grad_enabled():
                norms_D = args[0].detach().float().flatten(0, -2).norm(dim=0)
                before = self.norms.get(name, torch.zeros_like(norms_D))
                self.norms[name] = self.decay * before + (1 - self.decay) * norms_D

        return hook

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.world_size > 1:
            self._share_norms(args.world_size)
        if (state.global_step + 1) % self.every == 0:
            for name, norms_D in self.norms.items():
                if norms_D.any():  # A map that nothing has run through, such as an expert's, has no entry to be told by.
                    self.maps[name].weight.copy_(pruned(self.maps[name].weight, norms_D, self.share))

    def _share_norms(self, n_processes: int) -> None:
        """The mean of all processes, each of which saw a part of the batch: they have to zero the same entries."""
        sizes = [one.in_features for one in self.maps.values()]
        unseen = [one.weight.new_zeros(n, dtype=torch.float32) for one, n in zip(self.maps.values(), sizes, strict=True)]
        norms = torch.cat([self.norms.get(name, zeros) for name, zeros in zip(self.maps, unseen, strict=True)])
        torch.distributed.all_reduce(norms)
        parts = (norms / n_processes).split(sizes)
        self.norms = dict(zip(self.maps, parts, strict=True))

    def save_to(self, folder: Path) -> None:
        """Keep the running norms with a checkpoint."""
        save_file(self.norms, folder / NORMS_FILE)

    def load_from(self, folder: Path) -> None:
        """Go on from a checkpoint's running norms."""
        device = next(iter(self.maps.values())).weight.device
        self.norms = {name: value.to(device) for name, value in load_file(folder / NORMS_FILE).items()}
