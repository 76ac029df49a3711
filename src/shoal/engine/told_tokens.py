"""Progress of a text that is being written: told with every token, through the criteria that ``generate`` asks when to stop."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shoal.words.progress import tell


def told_tokens(n_prompt: int, n_new: int) -> Callable[..., Tensor]:
    """A criterion that never stops: it tells how many of ``n_new`` tokens stand behind a prompt of ``n_prompt``."""

    def go_on(so_far_BT: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        tell("write tokens", so_far_BT.shape[1] - n_prompt, n_new)
        return torch.zeros(len(so_far_BT), dtype=torch.bool, device=so_far_BT.device)

    return go_on
