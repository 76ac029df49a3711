"""Published ways to heal, as changes of :class:`HealConfig`; what a paper leaves open keeps Shoal's default.

A preset states method, ranks, rates and schedule. Where it states tokens, they are the paper's, so that a run
without ``--tokens`` asks for that much text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoal.words.entries import Entries, by_name

# UIDL, arXiv 2403.17887, appendix A.1: peak learning rate and rank of each model, by the name of its checkpoint.
UIDL_MODELS: Mapping[str, tuple[float, int, int]] = {
    "Llama-2-7b-hf": (3e-4, 2, 164_000_000),
    "Llama-2-13b-hf": (3e-4, 64, 328_000_000),
    "Llama-2-70b-hf": (3e-5, 8, 328_000_000),
    "Qwen-7B": (3e-4, 64, 164_000_000),
    "Qwen-14B": (3e-4, 64, 328_000_000),
    "Mistral-7B-v0.1": (3e-6, 4, 164_000_000),
    "phi-2": (2e-4, 64, 164_000_000),
}
UIDL_START = (3e-4, 64, 164_000_000)  # The search of the paper starts here.


@dataclass(frozen=True)
class Preset:
    """A paper's way to heal.

    Attributes:
        changes: fields of ``HealConfig``.
        differs: what of the paper is not known or not done here.
    """

    name: str
    about: str
    paper: str
    changes: Mapping[str, Any]
    differs: str = ""

    def for_model(self, model: str) -> dict[str, Any]:
        """The changes for a teacher with this name; UIDL's rates and ranks are per model."""
        changes = dict(self.changes)
        if self.name == "uidl":
            known = next((value for name, value in UIDL_MODELS.items() if model.lower().endswith(name.lower())), UIDL_START)
            changes.update(zip(("lr", "rank", "tokens"), known, strict=True))
        return changes


_TEXT = {"objective": "next_token", "floor": 0.0, "weight_decay": 0.0}

PRESETS: Entries[Preset] = by_name(
    "preset",
    Preset(
        "uidl",
        "QLoRA beside the MLPs on text, 5000 steps of 16 samples, rank and rate per model",
        "2403.17887",
        {**_TEXT, "method": "qlora", "targets": "mlp", "dropout": 0.05, "batch": 16, "warmup": 100},
        "The paper states neither the 4-bit type nor how it merges; here NF4, and the merge that measures best. Models "
        "it does not name get rank 64 and 3e-4, where its own search starts.",
    ),
    Preset(
        "reassessing",
        "the head, the final norm and the last three layers on instructions, 2 epochs of 64 samples",
        "2411.15558",
        {**_TEXT, "method": "partial", "layers": 3, "lr": 1e-5, "batch": 64, "warmup": 100},
        "One pass over the text instead of two epochs, in samples that are not cut to its 256 tokens. The paper trains LoRA "
        "at the same 1e-5, so it compares them at one rate, not each at its own.",
    ),
    Preset(
        "shortened",
        "LoRA of rank 8 beside every linear map, after whole layers went, on instructions",
        "2402.02834",
        {**_TEXT, "method": "lora", "rank": 8, "alpha": 16.0, "lr": 1e-4, "batch": 64, "warmup": 100},
        "One pass over the text instead of two epochs; scale and warm-up of the adapters are those of LLM-Pruner, on "
        "whose code the paper builds. Its continued pre-training is `--method full` on as much text as there is.",
    ),
    Preset(
        "llm-pruner",
        "LoRA of rank 8 beside every linear map, on instructions",
        "2305.11627",
        {**_TEXT, "method": "lora", "rank": 8, "alpha": 16.0, "dropout": 0.05, "lr": 1e-4, "batch": 64, "warmup": 100},
    ),
    Preset(
        "wanda",
        "LoRA of rank 8 beside queries and values, on text",
        "2306.11695",
        {**_TEXT, "method": "lora", "rank": 8, "alpha": 16.0, "dropout": 0.05, "lr": 1e-4, "targets": "attention"},
        "The released code adapts the maps of queries and values; here those of the whole attention.",
    ),
    Preset(
        "slicegpt",
        "LoRA of rank 32 with a scale of 10 beside attention and MLP, on text",
        "2401.15024",
        {**_TEXT, "method": "lora", "rank": 32, "alpha": 10.0, "dropout": 0.05, "batch": 3},
        "8000 samples of 1024 tokens in the paper, here what is given. The learning rate is Shoal's default for the width.",
    ),
)
