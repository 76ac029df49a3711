"""Thousands of damaged GGUF files: each is refused in one line, or cut into exactly what the gguf package reads in it."""

import random
import struct

import gguf
import pytest
from gguf_files import keys_of, tensors_of, write_file
from test_gguf_cut import LIST, U32, same_layers

from shoal.engine.gguf_head import read_head
from shoal.export.gguf.cut_file import cut_gguf

N = 6
KEPT = (0, 2, 3, 5)
EXTREMES = [struct.pack("<Q", n) for n in (0, 1, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1)] + [b"\xff" * 4, b"\x00" * 4]
KEYS = [
    ("attention.sliding_window", 16, U32, None),
    ("attention.head_count", [4] * N, LIST, U32),
    ("leading_dense_block_count", 2, U32, None),
    (".general.alignment", 32, U32, None),
]


def damaged(raw: bytes, rng: random.Random, *, n_head: int) -> bytes:
    """A file with some bytes changed, put in, taken out or cut off; mostly in its first ``n_head``."""
    changed = bytearray(raw)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(n_head if rng.random() < 0.9 else len(changed))
        way = rng.randrange(7)
        if way == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            changed[at] = rng.randrange(256)
        elif way == 2:
            piece = rng.choice(EXTREMES)
            changed[at : at + len(piece)] = piece
        elif way == 3:
            del changed[at : at + rng.randint(1, 40)]
        elif way == 4:
            changed[at:at] = rng.randbytes(rng.randint(1, 40))
        elif way == 5:
            start, n = rng.randrange(n_head), rng.randint(1, 60)
            changed[at : at + n] = changed[start : start + n]
        else:
            del changed[rng.randrange(24, len(changed)) :]
        if len(changed) < n_head:
            break
    return bytes(changed)


def is_cut(source, out):
    """Whether a file is accepted; a refusal is one line and leaves nothing behind."""
    out.unlink(missing_ok=True)
    before = sorted(source.parent.iterdir())
    try:
        cut_gguf(source, KEPT, out)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 500, error
        assert sorted(source.parent.iterdir()) == before, "nothing is written"
        return False
    return True


def check(raw, folder):
    """True where the file was accepted; fails for anything but a clear refusal or a right cut."""
    source, out = folder / "m.gguf", folder / "out.gguf"
    source.write_bytes(raw)
    if not is_cut(source, out):
        return False
    same_layers(tensors_of(source), tensors_of(out), KEPT)
    before, after = keys_of(source), keys_of(out)
    architecture = before["general.architecture"]
    for name, value in before.items():
        if name.startswith("general.") or name in (f"{architecture}.block_count", "shoal.kept_blocks"):
            continue
        if isinstance(value, list) and name.startswith(f"{architecture}.attention"):
            assert after[name] == [value[layer] for layer in KEPT], name
        elif name == f"{architecture}.leading_dense_block_count":
            assert after[name] == sum(layer < value for layer in KEPT)
        elif name == f"{architecture}.attention.sliding_window_pattern":
            assert len(after[name]) == len(KEPT)
        else:
            assert repr(after[name]) == repr(value), name  # The function repr is used because a number may be no number.
    assert after[f"{architecture}.block_count"] == len(KEPT)
    return True


@pytest.mark.parametrize(("n_files", "arch"), [pytest.param(5000, "llama", marks=pytest.mark.slow), (150, "gemma2")])
def test_damaged_files_are_refused_or_cut_right(n_files, arch, tmp_path):
    rng = random.Random(0)
    (tmp_path / "work").mkdir()
    raw = write_file(tmp_path / "whole.gguf", arch=arch, n_layers=N, keys=KEYS).read_bytes()
    assert check(raw, tmp_path / "work"), "the whole file is cut"
    n_accepted = sum(check(damaged(raw, rng, n_head=len(raw) - N * 700), tmp_path / "work") for _ in range(n_files))
    assert 0 < n_accepted < n_files / 2
    print(f"{n_files} damaged files, {n_accepted} still whole models, the others refused; gguf {gguf.__name__}")


@pytest.mark.parametrize("n_models", [pytest.param(5000, marks=pytest.mark.slow), 150])
def test_damaged_parts_are_refused_or_cut_right(n_models, tmp_path):
    """One part of three is damaged, or has the content of another, or that of the same part of another splitting."""
    rng = random.Random(1)
    for folder, split in (("a", 8), ("b", 4)):
        (tmp_path / folder).mkdir()
        write_file(tmp_path / folder / "m.gguf", n_layers=N, keys=KEYS, split=split)
    parts, others = (sorted((tmp_path / folder).iterdir()) for folder in "ab")
    whole, strange = [part.read_bytes() for part in parts], [part.read_bytes() for part in others]
    n_heads = [min(one.start for one in read_head(part).tensors) for part in parts]
    n_accepted = 0
    for _ in range(n_models):
        at = rng.randrange(len(parts))
        raw = rng.choice([damaged(whole[at], rng, n_head=n_heads[at])] * 6 + [rng.choice(whole), rng.choice(strange)])
        parts[at].write_bytes(raw)
        out = tmp_path / "a" / "out.gguf"
        if is_cut(rng.choice(parts), out):
            n_accepted += 1
            same_layers({name: one for part in parts for name, one in tensors_of(part).items()}, tensors_of(out), KEPT)
        out.unlink(missing_ok=True)
        parts[at].write_bytes(whole[at])
    assert 0 < n_accepted < n_models / 2
    print(f"{n_models} models of three parts with one damaged, {n_accepted} still whole, the others refused")
