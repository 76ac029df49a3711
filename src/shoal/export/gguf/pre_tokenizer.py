"""llama.cpp's names for how a ``tokenizer.json`` of byte-level BPE splits text before merging.

A name stands for patterns and for whether a piece that is a token itself is merged at all. Both must be exactly those of the
tokenizer: patterns that are nearly alike give other tokens without an error. The patterns are those of the models that
llama.cpp named its ways after (Llama 3, Qwen 2, Mistral Nemo, GPT-4o, GPT-2, SmolLM).
"""

from collections.abc import Mapping
from typing import Any

CURE = "export with --like TEACHER.gguf, which takes the tokenizer of that file"

DIGIT = r"\p{N}"
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT_4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

NAMES: dict[tuple[tuple[str | None, ...], bool], str] = {
    ((GPT_2,), False): "gpt-2",
    ((DIGIT, GPT_2), False): "smollm",
    ((LLAMA_3,), True): "llama-bpe",
    ((LLAMA_3,), False): "smaug-bpe",
    ((QWEN_2,), False): "qwen2",
    ((TEKKEN,), True): "tekken",
    ((GPT_4O,), False): "gpt-4o",
}
"""Patterns, and whether a piece that is a token is taken as it is (``ignore_merges``), to llama.cpp's name for both."""


def split_name(content: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> str:
    """llama.cpp's name for how a ``tokenizer.json`` splits text before merging.

    Args:
        content: of the file. Composition of characters (NFC) is let pass: text is written so nearly everywhere, and llama.cpp
            takes it as it comes.
        config: of the ``tokenizer_config.json`` beside it, which says of a space in front of a text, too.
    Raises:
        ValueError: a way that is not known, or something done to the text before that llama.cpp does not do.
    """
    changed = sorted({str(one.get("type")) for one in _steps(content.get("normalizer"), "normalizers")} - {"NFC"})
    if changed:
        raise ValueError(f"its tokenizer changes text before it splits it ({', '.join(changed)}), llama.cpp does not; {CURE}")
    steps = _steps(content.get("pre_tokenizer"), "pretokenizers")
    if any(one.get("add_prefix_space") for one in (*steps, config or {})):
        raise ValueError(f"its tokenizer puts a space in front of a text, llama.cpp does not; {CURE}")
    is_byte_level = [one.get("type") == "ByteLevel" for one in steps]
    ignores_merges = bool((content.get("model") or {}).get("ignore_merges"))
    patterns = tuple(pattern for one in steps if (pattern := _pattern(one)) != "")
    name = NAMES.get((patterns, ignores_merges))
    if name is None or is_byte_level != [False] * (len(steps) - 1) + [True]:
        raise ValueError(f"its tokenizer splits text in a way that has no known name in llama.cpp; {CURE}")
    return name


def _steps(stated: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    """The steps of a section of the file, which is one step, a sequence of steps, or nothing."""
    if not stated:
        return []
    return list(stated.get(inner) or []) if stated.get("type") == "Sequence" else [stated]


def _pattern(step: Mapping[str, Any]) -> str | None:
    """The pattern by which a step splits text into pieces that all stay; empty where it splits none, None for another step."""
    kind = step.get("type")
    if kind == "ByteLevel":
        return GPT_2 if step.get("use_regex", True) else ""
    if kind == "Digits" and step.get("individual_digits"):
        return DIGIT
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return (step.get("pattern") or {}).get("Regex")
    return None
