"""The keys of a GGUF file that hold a tokenizer, from the tokenizer files of a checkpoint folder.

Two kinds: byte-level BPE from ``tokenizer.json``, whose way of splitting text goes by a name of llama.cpp's, and SentencePiece
from ``tokenizer.model``. What cannot be named exactly is refused: another way of splitting gives other tokens without an error.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shoal.engine.gguf_head import BOOL, FLOAT32, INT32, STRING, UINT32, Value
from shoal.export.gguf.pre_tokenizer import CURE, split_name
from shoal.words.reading import read_bytes, read_json

PREFIX = "tokenizer.ggml."
TEMPLATE = "tokenizer.chat_template"
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # These are kinds of tokens, which SentencePiece numbers alike.
SQUEEZED = f"{PREFIX}remove_extra_whitespaces"


def tokenizer_keys(folder: Path, n_vocab: int) -> dict[str, Value]:
    """Keys of the tokenizer of a folder; ``none`` for a folder without one, so that engines run it on token ids.

    Raises:
        ValueError: a kind of tokenizer that cannot be written exactly.
    """
    if (folder / "tokenizer.model").is_file():
        keys = _sentencepiece(folder / "tokenizer.model", n_vocab, _added(folder))
    elif (folder / "tokenizer.json").is_file():
        keys = _byte_level(folder, n_vocab)
    elif (folder / "tokenizer_config.json").is_file() or (folder / "vocab.json").is_file():
        raise ValueError(f"{folder} has a tokenizer but no tokenizer.json and no tokenizer.model; {CURE}")
    else:
        return {f"{PREFIX}model": Value.of("none", STRING)}
    return {**keys, **_special(folder, n_vocab)}


def _byte_level(folder: Path, n_vocab: int) -> dict[str, Value]:
    path, beside = folder / "tokenizer.json", folder / "tokenizer_config.json"
    content = read_json(path)
    model = content.get("model") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise ValueError(f"{path} is a {model.get('type')} tokenizer, byte-level BPE or a tokenizer.model is needed; {CURE}")
    name = split_name(content, read_json(beside) if beside.is_file() else None)
    tokens, kinds = [f"[PAD{i}]" for i in range(n_vocab)], [UNUSED] * n_vocab
    added = content.get("added_tokens") or []
    for token, i in model["vocab"].items():
        _put(tokens, kinds, i, token, NORMAL, path)
    for one in added:
        _put(tokens, kinds, one["id"], one["content"], CONTROL if one.get("special") else USER_DEFINED, path)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges", [])]
    return {
        f"{PREFIX}model": Value.of("gpt2", STRING),
        f"{PREFIX}pre": Value.of(name, STRING),
        f"{PREFIX}tokens": Value.of_list(tokens, STRING),
        f"{PREFIX}token_type": Value.of_list(kinds, INT32),
        f"{PREFIX}merges": Value.of_list(merges, STRING),
    }


def _put(tokens: list[str], kinds: list[int], i: int, token: str, kind: int, path: Path) -> None:
    if not 0 <= i < len(tokens):
        raise ValueError(f"{path} has the token {token!r} as number {i}, the model has {len(tokens)} tokens")
    tokens[i], kinds[i] = token, kind


def _added(folder: Path) -> list[dict[str, Any]]:
    path = folder / "tokenizer.json"
    return (read_json(path).get("added_tokens") or []) if path.is_file() else []


def _sentencepiece(path: Path, n_vocab: int, added: list[dict[str, Any]]) -> dict[str, Value]:
    raw = read_bytes(path)
    tokens, scores, kinds = [], [], []
    for token, score, kind in pieces(raw):
        tokens.append(token)
        scores.append(score)
        kinds.append(kind)
    if not tokens or len(tokens) > n_vocab:
        raise ValueError(f"{path} has {len(tokens)} tokens, the model {n_vocab}; it is not the tokenizer of this model")
    missing = n_vocab - len(tokens)
    tokens += [f"[PAD{i}]" for i in range(n_vocab - missing, n_vocab)]
    scores += [-1000.0] * missing
    kinds += [UNUSED] * missing
    for one in added:
        _put(tokens, kinds, one["id"], one["content"], CONTROL if one.get("special") else USER_DEFINED, path)
    prefix, squeezed = spaces(raw)
    return {
        f"{PREFIX}model": Value.of("llama", STRING),
        f"{PREFIX}pre": Value.of("default", STRING),
        f"{PREFIX}tokens": Value.of_list(tokens, STRING),
        f"{PREFIX}scores": Value.of_list(scores, FLOAT32),
        f"{PREFIX}token_type": Value.of_list(kinds, INT32),
        f"{PREFIX}add_space_prefix": Value.of(prefix, BOOL),
        SQUEEZED: Value.of(squeezed, BOOL),
    }


def pieces(raw: bytes) -> Iterator[tuple[str, float, int]]:
    """Token, score and kind of every piece of a SentencePiece model (protocol buffers: field 1 of ModelProto, repeated)."""
    for number, content in _fields(raw):
        if number == 1 and isinstance(content, bytes):
            found = dict(_fields(content))
            text, score = found.get(1, b""), found.get(2, b"\0\0\0\0")
            if not isinstance(text, bytes) or not isinstance(score, bytes):
                raise ValueError("tokenizer.model is damaged: a piece is no text; download it again")
            yield text.decode("utf-8", "replace"), struct.unpack("<f", score)[0], int(found.get(3, NORMAL))


def spaces(raw: bytes) -> tuple[bool, bool]:
    """Whether a SentencePiece model puts a space in front of a text, and whether it makes one of several spaces.

    Both stand in its normaliser (field 3 of ModelProto: its fields 3 and 4), and both are true where nothing is stated.
    """
    stated = dict(_fields(raw)).get(3, b"")
    normaliser = dict(_fields(stated)) if isinstance(stated, bytes) else {}
    return bool(normaliser.get(3, True)), bool(normaliser.get(4, True))


def _fields(raw: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Number and content of every field of a message: integers, and bytes for texts, messages and fixed-width numbers."""
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(raw, at)
            yield tag >> 3, value
            continue
        n, at = _varint(raw, at) if kind == 2 else ({1: 8, 5: 4}.get(kind, len(raw)), at)
        if at + n > len(raw):
            raise ValueError("tokenizer.model is damaged or no SentencePiece model; download it again")
        yield tag >> 3, raw[at : at + n]
        at += n


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(raw) and shift < 64:
        value |= (raw[at] & 0x7F) << shift
        at += 1
        if raw[at - 1] < 0x80:
            return value, at
        shift += 7
    raise ValueError("tokenizer.model is damaged or no SentencePiece model; download it again")


def _special(folder: Path, n_vocab: int) -> dict[str, Value]:
    """Ids of special tokens, whether the start and end tokens are added, and the chat templates."""
    import logging

    from gguf import SpecialVocab

    logging.getLogger("gguf.vocab").setLevel(logging.ERROR)
    found = SpecialVocab(folder, n_vocab=n_vocab)
    names = {"pad": "padding", "unk": "unknown", "sep": "seperator"}  # The format spells it so.
    keys = {f"{PREFIX}{names.get(k, k)}_token_id": Value.of(int(i), UINT32) for k, i in found.special_token_ids.items()}
    keys |= {f"{PREFIX}add_{k}_token": Value.of(bool(yes), BOOL) for k, yes in found.add_special_token.items()}
    templates = chat_templates(folder, found.chat_template)
    keys |= {f"{TEMPLATE}{'' if n == 'default' else f'.{n}'}": Value.of(text, STRING) for n, text in templates.items()}
    others = [name for name in templates if name != "default"]
    if others:
        keys[f"{TEMPLATE}s"] = Value.of_list(others, STRING)
    return keys


def chat_templates(folder: Path, stated: Any) -> dict[str, str]:
    """Chat templates by name; ``default`` is the one that is meant where none is named.

    Args:
        stated: by ``tokenizer_config.json``: a text, or a list of names and texts. It counts where no files of templates stand
            beside it, as in transformers.
    """
    files = [folder / "chat_template.jinja", *sorted((folder / "additional_chat_templates").glob("*.jinja"))]
    read = {path.stem: path.read_text(encoding="utf-8") for path in files if path.is_file()}
    if read:
        return {"default" if name == "chat_template" else name: text for name, text in read.items()}
    if isinstance(stated, list):
        return {str(one["name"]): str(one["template"]) for one in stated}
    return {"default": stated} if isinstance(stated, str) else {}
