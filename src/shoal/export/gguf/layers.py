"""What a GGUF file says layer by layer, and what llama.cpp makes of a layer's number where the file says nothing.

A cut renumbers layers. That is exact only where everything that depends on a number is known: lists with one entry per layer
are filtered, patterns with a period are written out, counts of leading layers are counted again, and architectures whose code
asks for the number of layers are refused by name. Architectures are an allow-list, each read in the code of llama.cpp
(src/models, builds of August to October 2026). An unknown one is refused: a wrong pattern is a wrong model without an error.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.engine.gguf_head import ARRAY, BOOL, FLOAT32, Value

LEADING = "leading_dense_block_count"
PATTERN = "attention.sliding_window_pattern"

# Lists of one entry per layer, by what follows the architecture in their keys.
PER_LAYER = (
    "attention.head_count",
    "attention.head_count_kv",
    "feed_forward_length",
    PATTERN,
    "attention.rope_pattern",
)
# These keys go without the name of the architecture.
PER_LAYER_EVERYWHERE = ("xielu.alpha_n", "xielu.alpha_p", "xielu.beta", "xielu.eps")
# Numbers that the rules below read.
COUNTS = (LEADING, PATTERN, "interleave_moe_layer_step", "attention.sliding_window")
# Lists that are about something else, whatever their length.
NOT_PER_LAYER = ("rope.dimension_sections", "classifier.output_labels")
# Any value but these ties layers to each other, or to where they stand.
NEEDED: dict[str, tuple[Any, ...]] = {
    "nextn_predict_layers": (0,),
    "attention.shared_kv_layers": (0,),
    "embedding_length_per_layer_input": (0,),
    "decoder_block_count": (),
    "full_attention_interval": (),
    "n_deepstack_layers": (0,),
    "rescale_every_n_layers": (0,),
    "moe_every_n_layers": (0,),
}

Kind = Callable[[Mapping[str, Any], int], Any]
"""What llama.cpp makes of layer ``i``, from the values of the keys (without the architecture) and the number."""


@dataclass(frozen=True)
class Rules:
    """What an architecture does with a layer's number.

    Attributes:
        window_period: of the layers with a sliding window where the file gives none; every layer but the last of a period has
            one. None: no windows, or a list in the file.
        is_full_first: the first of a period is the one without a window.
        needs_window: windows are there only where the file states their size.
        by_number: what cannot be written into a file; the kept layers must come out as they were.
        switches: numbers of layers at which the code changes; a cut may not lead from or to one.
        at_least: as ``switches``, but every number from this one on.
        writes: keys that llama.cpp computes from the number of layers where the file has none; written with the value of the
            old number.
    """

    window_period: int | None = None
    is_full_first: bool = False
    needs_window: bool = True
    by_number: Kind | None = None
    switches: tuple[int, ...] = ()
    at_least: int | None = None
    writes: dict[str, Callable[[int], float]] = field(default_factory=dict)


def _no_rope_each_fourth(keys: Mapping[str, Any], i: int) -> bool:
    return (i + 1) % 4 == 0


def _llama4(keys: Mapping[str, Any], i: int) -> tuple[bool, bool]:
    step = keys.get("interleave_moe_layer_step") or 0
    return keys.get("attention.sliding_window") != 0 and (i + 1) % 4 == 0, step > 0 and (i + 1) % step == 0


def _smallthinker(keys: Mapping[str, Any], i: int) -> bool:
    return bool(keys.get("attention.sliding_window")) and i % 4 == 0


def _ernie_moe(keys: Mapping[str, Any], i: int) -> bool:
    return i >= (keys.get(LEADING) or 0) and (i + 1) % (keys.get("interleave_moe_layer_step") or 1) == 0


PLAIN = (
    "apertus arcee arctic bailingmoe bitnet bloom chameleon chatglm codeshell dbrx deci deepseek dots1 ernie4_5 "
    "exaone falcon gemma glm4 gpt2 gptneox granite granitemoe grok hunyuan-dense hunyuan-moe internlm2 jais llama "
    "maincoder minimax-m2 mistral3 mpt nemotron olmo olmoe openelm orion pangu-embedded phi2 phi3 phimoe plamo plm "
    "qwen qwen2 qwen2moe qwen3 qwen3moe refact seed_oss stablelm starcoder starcoder2 xverse"
).split()

ARCHITECTURES: dict[str, Rules] = {
    **{name: Rules() for name in PLAIN},
    "afmoe": Rules(window_period=4, by_number=_no_rope_each_fourth),
    "cohere2": Rules(window_period=4, needs_window=False),
    "command-r": Rules(at_least=64),  # From 64 layers on queries and keys are normalised.
    "deepseek2": Rules(switches=(26, 27, 47, 48)),  # These depths have no compressed queries, or another scale of the experts.
    "ernie4_5-moe": Rules(by_number=_ernie_moe),
    "exaone4": Rules(switches=(64,)),  # The model of 32B has other windows and rotary embeddings.
    "gemma2": Rules(window_period=2, needs_window=False, switches=(46,)),  # The model of 27B scales its attention otherwise.
    "gemma3": Rules(window_period=6, switches=(62,)),  # The rule is that of gemma2.
    "gpt-oss": Rules(window_period=2, needs_window=False),
    "llama4": Rules(window_period=4, needs_window=False, by_number=_llama4),
    "minicpm": Rules(writes={"residual_scale": lambda n: 1.4 / math.sqrt(n)}),
    "olmo2": Rules(window_period=4),
    "plamo3": Rules(window_period=8),
    "smallthinker": Rules(window_period=4, is_full_first=True, by_number=_smallthinker),
    "smollm3": Rules(by_number=_no_rope_each_fourth),
}
WHY_NOT = {
    "baichuan": "llama.cpp runs it with 32 or 40 layers only",
    "gemma3n": "its layers share keys and values and take embeddings of their own",
    "gemma4": "its layers share keys and values and take embeddings of their own",
    "minicpm3": "llama.cpp scales its residuals by the number of layers, and no key says otherwise",
    "qwen3next": "llama.cpp takes its recurrent layers from a period",
    "t5": "it has two stacks of layers",
}


def cut_keys(keys: Mapping[str, Value], architecture: str, n_layers: int, order: Sequence[int]) -> dict[str, Value]:
    """The keys of the model whose layer ``j`` is layer ``order[j]`` of the model that ``keys`` describe.

    Raises:
        ValueError: names the architecture and the key: layers that cannot be cut one by one, a pattern that cannot be written,
            a number of layers that the engine treats otherwise, a list that is not known to be about layers or not.
    """
    where = f"architecture {architecture!r}"
    rules = _rules(architecture)
    told = {
        name.removeprefix(f"{architecture}."): value.value
        for name, value in keys.items()
        if name.startswith(f"{architecture}.") and value.kind != ARRAY
    }
    for key in COUNTS:
        if key in told and (type(told[key]) is not int or told[key] < 0):
            raise ValueError(f"{where}: {architecture}.{key} is {told[key]!r}, a count is needed; the file is damaged")
    new = dict(keys)
    n = len(order)
    new[f"{architecture}.block_count"] = Value.of(n, keys[f"{architecture}.block_count"].kind)
    if list(order) == list(range(n_layers)):
        return new
    _refuse(rules, told, n_layers, order, where)
    for name, value in keys.items():
        if value.is_array and (name.startswith(f"{architecture}.") or name in PER_LAYER_EVERYWHERE):
            new[name] = _cut_list(name, name.removeprefix(f"{architecture}."), value, n_layers, order, where)
    heads = new.get(f"{architecture}.attention.head_count")
    if architecture == "deci" and heads is not None and heads.is_array and not heads.value[0]:
        raise ValueError(
            f"{where}: layer {order[0]} has no attention, and llama.cpp needs some in the first layer; keep another"
        )
    lead = f"{architecture}.{LEADING}"
    if lead in keys:
        new[lead] = Value.of(sum(layer < told[LEADING] for layer in order), keys[lead].kind)
    for key, computed in rules.writes.items():
        new.setdefault(f"{architecture}.{key}", Value.of(computed(n_layers), FLOAT32))
    if rules.window_period is not None and (told.get("attention.sliding_window") or not rules.needs_window):
        _write_pattern(new, f"{architecture}.{PATTERN}", rules, n_layers, order)
    return new


def lists_windows(keys: Mapping[str, Value], architecture: str) -> bool:
    """Whether windows are listed where llama.cpp knew a period only, before build b11434 (October 2026)."""
    pattern, rules = keys.get(f"{architecture}.{PATTERN}"), ARCHITECTURES.get(architecture, Rules())
    return pattern is not None and pattern.is_array and rules.window_period is not None


def _rules(architecture: str) -> Rules:
    rules = ARCHITECTURES.get(architecture)
    if rules is None:
        why = WHY_NOT.get(architecture, "what llama.cpp makes of its layers' numbers is not known here")
        raise ValueError(
            f"architecture {architecture!r} cannot be cut as a GGUF file: {why}; cut the safetensors checkpoint, convert that"
        )
    return rules


def _refuse(rules: Rules, told: Mapping[str, Any], n_layers: int, order: Sequence[int], where: str) -> None:
    for key, allowed in NEEDED.items():
        if key in told and told[key] not in allowed:
            raise ValueError(f"{where}: {key}={told[key]} ties layers to each other or to their number; it cannot be cut")
    n = len(order)
    for special in rules.switches:
        if special in (n_layers, n):
            raise ValueError(
                f"{where}: llama.cpp treats a model of {special} layers as another one, so {n_layers} layers cannot become {n}"
            )
    if rules.at_least is not None and (n_layers >= rules.at_least) != (n >= rules.at_least):
        raise ValueError(
            f"{where}: llama.cpp treats models of {rules.at_least} layers and more as others, so {n_layers} cannot become {n}"
        )
    if rules.by_number is None:
        return
    old = dict(told)
    lead = {LEADING: sum(layer < told[LEADING] for layer in order)} if LEADING in told else {}
    for j, layer in enumerate(order):
        if rules.by_number({**told, **lead}, j) != rules.by_number(old, layer):
            raise ValueError(
                f"{where}: llama.cpp takes what a layer is from its number, and as layer {j} layer {layer} would be another; "
                "remove whole periods (4 layers in a row)"
            )


def _cut_list(name: str, key: str, value: Value, n_layers: int, order: Sequence[int], where: str) -> Value:
    if key in NOT_PER_LAYER:
        return value
    if key in PER_LAYER or key in PER_LAYER_EVERYWHERE:
        if len(value) != n_layers:
            raise ValueError(f"{where}: {name} has {len(value)} entries for {n_layers} layers; the file is damaged")
        entries = value.value
        return Value.of_list([entries[layer] for layer in order], value.element_kind)
    raise ValueError(
        f"{where}: {name} is a list of {len(value)} entries that may be about layers; it is not known how to cut it"
    )


def _write_pattern(new: dict[str, Value], key: str, rules: Rules, n_layers: int, order: Sequence[int]) -> None:
    """Leave the period where it still describes the layers, else list which of them have a window."""
    stated = new.get(key)
    if stated is not None and stated.is_array:
        return  # The list is filtered already.
    period = rules.window_period if stated is None else int(stated.value)
    assert period is not None
    kinds = [has_window(layer, period, is_full_first=rules.is_full_first) for layer in range(n_layers)]
    kept = [kinds[layer] for layer in order]
    if kept != kinds[: len(kept)]:
        new[key] = Value.of_list(kept, BOOL)


def has_window(layer: int, period: int, *, is_full_first: bool) -> bool:
    """Whether llama.cpp gives a layer a sliding window; a period of 0 gives one to all."""
    if period == 0:
        return True
    return layer % period != 0 if is_full_first else layer % period < period - 1
