"""A healing's options as the arguments of transformers' Trainer."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from shoal.train.heal.config import HealConfig


def arguments(
    config: HealConfig, folder: Path, *, lr: float, n_steps: int, interval: int, device: str, in_bf16: bool
) -> TrainingArguments:
    """What the Trainer is told.

    Args:
        folder: of its checkpoints.
        config: settled, so that its batch is known.
        interval: steps between validations, which are the checkpoints as well.
        in_bf16: compute in bf16 by autocast; trained parameters and moments are fp32 all the same.
    """
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=config.micro_batch,
        gradient_accumulation_steps=config.n_batch // (n_processes() * config.micro_batch),
        learning_rate=lr,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": config.floor},
        warmup_steps=warmup_steps(config, n_steps),
        weight_decay=config.weight_decay,
        adam_beta1=config.betas[0],
        adam_beta2=config.betas[1],
        max_grad_norm=config.clip,
        bf16=in_bf16,
        use_cpu=device.startswith("cpu"),
        **_checkpointing(config),
        **({"fsdp": True, "fsdp_config": {"version": 2}} if config.processes == "shard" and n_processes() > 1 else {}),
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=interval,
        save_strategy="steps",
        save_steps=interval,
        save_total_limit=1,
        seed=config.seed,
        data_seed=config.seed,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        ddp_find_unused_parameters=False,
    )


def warmup_steps(config: HealConfig, n_steps: int) -> float:
    """The warm-up as the Trainer takes it: a share of all steps below 1, else their number, here at most a tenth of them.

    A paper's hundred steps would be all of a short training, and its learning rate would never be reached.
    """
    return config.warmup if config.warmup < 1 else min(config.warmup, max(1, n_steps // 10))


def n_processes() -> int:
    """How many processes the launcher started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def _checkpointing(config: HealConfig) -> dict[str, Any]:
    """Recomputed activations, under the name that this transformers has for them."""
    if not config.checkpointing:
        return {}
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}
