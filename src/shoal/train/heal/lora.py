"""LoRA: W + (alpha / r) B A beside frozen weights, by peft; B starts at zero, so the first step starts from the student.

Source: arXiv 2106.09685. rsLoRA scales by alpha / sqrt(r) (arXiv 2312.03732); DoRA trains the norm of every output of the map,
too (arXiv 2402.09353).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from shoal.train.heal.lora_targets import TargetMap, costs, linear_maps
from shoal.train.heal.ranks import RANKS, RankEvidence, divided

if TYPE_CHECKING:
    from shoal.train.heal.config import HealConfig
    from shoal.words.model_shape import ModelShape


def add_adapters(model: Any, config: HealConfig, evidence: RankEvidence) -> Any:
    """The model with adapters, as a ``PeftModel``; everything but the adapters is frozen.

    Raises:
        ValueError: no map to adapt; a rank above the width of a map.
    """
    import peft

    maps = linear_maps(model, config.targets)
    width = refuse_wide_rank(maps, config.rank)
    weights = RANKS.named(config.ranks).weights(evidence)
    ranks = divided(weights, costs(maps, evidence.n_layers), config.rank, most=width)
    scale = (config.alpha or config.rank) / config.rank
    pattern = {} if len(set(ranks)) == 1 else {one.name: ranks[one.layer] for one in maps}
    made = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=scale * config.rank,
        lora_dropout=config.dropout,
        target_modules=[one.name for one in maps],
        # Full names with their dots escaped: peft reads the keys as regular expressions.
        rank_pattern={_escaped(name): rank for name, rank in pattern.items()},
        alpha_pattern={_escaped(name): scale * rank for name, rank in pattern.items()},
        use_rslora=config.variant == "rslora",
        use_dora=config.variant == "dora",
        fan_in_fan_out=type(maps[0].module).__name__ == "Conv1D",
    )
    return peft.get_peft_model(model, made)


def refuse_wide_rank(maps: Sequence[TargetMap], rank: int) -> int:
    """The width of the narrowest map, which has no more directions to train. Raises ValueError for a rank above it."""
    narrow = min(maps, key=lambda one: min(one.n_in, one.n_out))
    width = min(narrow.n_in, narrow.n_out)
    if rank > width:
        raise ValueError(f"rank {rank} is above the width of {narrow.name} ({width}); give --rank {width} or less")
    return width


def _escaped(name: str) -> str:
    return name.replace(".", r"\.")


def adapter_ranks(layers: Sequence[nn.Module]) -> tuple[int, ...]:
    """The largest rank of an adapter in each layer, 0 where a layer has none; empty where no layer has one."""

    def rank(layer: Any) -> int:
        return max((max(module.r.values()) for module in layer.modules() if hasattr(module, "lora_A")), default=0)

    ranks = tuple(rank(layer) for layer in layers)
    return ranks if any(ranks) else ()


def merged(model: Any) -> Any:
    """The plain model with its adapters added into the weights, in the weights' own dtype."""
    return model.merge_and_unload()


def most_adapters(shape: ModelShape, n_layers: int, config: HealConfig) -> int:
    """Parameters of adapters of the average rank: beside four maps of the attention, and three of the MLP."""
    return n_layers * config.rank * (8 * shape.hidden + 3 * (shape.hidden + shape.ffn))
