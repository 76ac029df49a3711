"""Small worlds for the tests of text: a tokenizer of numbered words, documents with words of their own, files of them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD, UNK = 0, 1, 2, 3
N_SPECIAL = 4
CHAT_TEMPLATE = "{{ bos_token }}{% for m in messages %} {{ m.role }} {{ m.content }}{% endfor %}"


def word_tokenizer(
    n_words: int = 2000,
    *,
    special: Sequence[str] = ("bos", "eos", "pad"),
    start: Sequence[str] | None = None,
    end: str | None = None,
    unknown: str | None = "<unk>",
    **options: Any,
) -> Any:
    """``w7`` is id 4 + 7. Adds ``start`` (BOS, if it has one, unless given) and ``end`` where special tokens are asked for.

    Without ``unknown`` it refuses words that it does not know.
    """
    names = ["<bos>", "<eos>", "<pad>", "<unk>", *(f"w{i}" for i in range(n_words)), "user", "assistant"]
    raw = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, **({"unk_token": unknown} if unknown else {})))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    added = tuple(("<bos>",) if "bos" in special else ()) if start is None else tuple(start)
    if added or end:
        raw.post_processor = processors.TemplateProcessing(
            single=" ".join([*added, "$A", *([end] if end else [])]),
            special_tokens=[(name, names.index(name)) for name in {*added, *([end] if end else [])}],
        )
    tokens = {f"{name}_token": f"<{name}>" for name in special}
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token=unknown, **tokens, **options)


def words(start: int, n: int) -> str:
    return " ".join(f"w{i}" for i in range(start, start + n))


def own_words(sizes: Sequence[int]) -> list[str]:
    """Documents of the given numbers of words; no word is in two of them."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [words(start, size) for start, size in zip(starts, sizes, strict=True)]


def write_jsonl(path: Path, texts: Sequence[str], **columns: Sequence[Any]) -> str:
    rows = [{"text": text, **{name: values[i] for name, values in columns.items()}} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_as(suffix: str, folder: Path, texts: Sequence[str]) -> str:
    """The documents as one file; returns its path."""
    path = folder / f"text{suffix}"
    if suffix == ".txt":
        path.write_text("\n\n".join(texts) + "\n")
    elif suffix == ".txt.gz":
        path.write_bytes(gzip.compress("\n\n".join(texts).encode()))
    elif suffix == ".jsonl":
        write_jsonl(path, texts)
    elif suffix == ".jsonl.gz":
        path.write_bytes(gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in texts).encode()))
    elif suffix in (".json", ".json.gz"):
        content = json.dumps([{"text": text} for text in texts]).encode()
        path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    elif suffix.removesuffix(".gz") in (".csv", ".tsv"):
        mark = "\t" if ".tsv" in suffix else ","
        content = "".join(mark.join((str(i), f'"{text}"')) + "\r\n" for i, text in enumerate(texts))
        content = (f"id{mark}text\r\n" + content).encode()
        path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    elif suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"text": list(texts)}), path)
    else:
        raise AssertionError(suffix)
    return str(path)
