"""The methods of healing by name. A new one is one file with its ``prepare``, and one line here.

The table is plain data, free of torch: recipes, the command's help and the planner read it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.engine.opening import Opening
from shoal.words.entries import Entries, by_name
from shoal.words.late import late

if TYPE_CHECKING:
    from shoal.train.heal.config import HealConfig
    from shoal.train.heal.ranks import RankEvidence
    from shoal.words.model_shape import ModelShape

MOST_HEAL_LR = 1e-2


def open_plainly(path: Path, opening: Opening = Opening()) -> Any:
    """The checkpoint in its own dtype. Raises ValueError for a damaged one: what holds NaN trains to NaN at any rate."""
    from shoal.engine.open import load_strictly, refuse_nonfinite

    model = load_strictly(path, device=opening.device, trust_remote_code=opening.trust)
    refuse_nonfinite(model, str(path))
    return model


@dataclass(frozen=True)
class Trainable:
    """A method of healing.

    Attributes:
        prepare: (model in memory, config, evidence for ranks) to the model that is trained: exactly its trainable parameters
            require gradients, and it computes what the student computes.
        most_trained: parameters that it trains at most, from sizes, the number of layers and the config, for the memory plan.
        rate: the learning rate at a hidden size of 4096; narrower models take more, in inverse proportion.
        has_adapters: what is trained lies beside the weights, so it has to be merged into them.
        open: how the checkpoint is opened.
        is_quantised: the adapters are trained beside weights in 4 bits.
        lighter: a method that takes less memory for much the same; empty where there is none.
        options: fields of the config that only some methods read, those that this one does.
    """

    name: str
    about: str
    prepare: Callable[[Any, HealConfig, RankEvidence], Any]
    most_trained: Callable[[ModelShape, int, HealConfig], int]
    rate: float
    has_adapters: bool = False
    open: Callable[[Path, Opening], Any] = open_plainly
    is_quantised: bool = False
    lighter: str = ""
    options: tuple[str, ...] = ()

    def learning_rate(self, hidden_size: int) -> float:
        """The peak rate where none is asked for: the step of Adam on a d x d matrix moves its output in proportion to d."""
        return min(MOST_HEAL_LR, self.rate * 4096 / hidden_size)


OF_ADAPTERS = (
    "rank", "alpha", "dropout", "targets", "variant", "ranks", "pruned", "prune_every", "prune_decay", "merge", "most_lost",
)  # fmt: skip

TRAINABLE: Entries[Trainable] = by_name(
    "healing method",
    Trainable(
        "lora",
        "low-rank adapters beside every linear map, merged at the end",
        late("shoal.train.heal.lora:add_adapters"),
        late("shoal.train.heal.lora:most_adapters"),
        2e-4,
        has_adapters=True,
        lighter="qlora",
        options=OF_ADAPTERS,
    ),
    Trainable(
        "qlora",
        "the same beside weights in 4 bits",
        late("shoal.train.heal.lora:add_adapters"),
        late("shoal.train.heal.lora:most_adapters"),
        2e-4,
        has_adapters=True,
        open=late("shoal.train.heal.qlora:open_in_4_bits"),
        is_quantised=True,
        options=OF_ADAPTERS,
    ),
    Trainable(
        "partial",
        "the output head, the final norm and the last layers",
        late("shoal.train.heal.partial:thaw_the_end"),
        late("shoal.train.heal.partial:most_of_the_end"),
        1e-4,
        lighter="lora",
        options=("layers", "head", "regrow", "regrow_every", "regrow_in"),
    ),
    Trainable(
        "new",
        "the layers that a growing put in",
        late("shoal.train.heal.new_layers:thaw_new_layers"),
        late("shoal.train.heal.new_layers:most_new_layers"),
        1e-4,
    ),
    Trainable(
        "full",
        "every parameter",
        late("shoal.train.heal.full:thaw_all"),
        late("shoal.train.heal.full:all_of_them"),
        5e-5,
        lighter="lora",
        options=("processes", "regrow", "regrow_every", "regrow_in"),
    ),
    Trainable(
        "norms",
        "gains and biases alone",
        late("shoal.train.heal.norms:thaw_vectors"),
        late("shoal.train.heal.norms:most_vectors"),
        1e-3,
    ),
)
