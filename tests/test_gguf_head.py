"""The head of a GGUF file reads as the gguf package reads it; whatever a file claims, reading ends in one line."""

import struct

import gguf
import pytest
from gguf_files import F16, Q4_1, Q8_0, keys_of, tensors_of, write_file

from shoal.engine.gguf_head import FLOAT32, INT32, STRING, UINT32, Value, block_sizes, read_head
from shoal.export.gguf.file_parts import open_model
from shoal.export.gguf.write_file import Outgoing, write_gguf

ALL_KINDS = [
    ("u8", 200, 0), ("i8", -7, 1), ("u16", 65000, 2), ("i16", -3000, 3), ("u32", 2**32 - 1, 4), ("i32", -5, 5),
    ("f32", 0.25, 6), ("truth", True, 7), ("text", "é\n日本", 8), ("u64", 2**60, 10), ("i64", -(2**60), 11),
    ("f64", 1e-300, 12),
]  # fmt: skip


@pytest.mark.parametrize("kind", [F16, Q8_0, Q4_1], ids=str)
def test_reads_what_the_gguf_package_reads(kind, tmp_path):
    keys = [(name, value, gguf.GGUFValueType(number), None) for name, value, number in ALL_KINDS]
    keys += [
        (f"list.{name}", [value] * 3, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType(number)) for name, value, number in ALL_KINDS
    ]
    path = write_file(tmp_path / "m.gguf", keys=keys, kind=kind, alignment=64)
    head = read_head(path)
    assert {name: value.value for name, value in head.keys.items()} == keys_of(path)
    raw = path.read_bytes()
    found = {p.name: (p.kind, p.shape, raw[p.start : p.start + p.n_bytes]) for p in head.tensors}
    assert found == tensors_of(path) and head.alignment == 64


def test_a_written_file_reads_back(tmp_path):
    keys = {"general.architecture": Value.of("llama", STRING), "n": Value.of_list([1, -2, 3], INT32)}
    keys |= {"texts": Value.of_list(["a", "", "日本"], STRING), "general.alignment": Value.of(16, UINT32)}
    data = [struct.pack("<5f", *range(5)), struct.pack("<4f", *range(4))]
    tensors = [
        Outgoing(f"t{i}", (len(raw) // 4,), 0, len(raw), lambda raw=raw: [raw[:8], raw[8:]]) for i, raw in enumerate(data)
    ]
    out = write_gguf(tmp_path / "deep" / "out.gguf", keys, tensors)
    assert keys_of(out) == {name: value.value for name, value in keys.items()}
    assert [one[2] for one in tensors_of(out).values()] == data
    assert out.stat().st_size % 16 == 0 and oct(out.stat().st_mode & 0o777) == "0o644"


def test_block_sizes_are_those_of_the_gguf_package():
    assert block_sizes()[int(Q4_1)] == ("Q4_1", 32, 20) and len(block_sizes()) == len(gguf.GGML_QUANT_SIZES)


HEAD = b"GGUF" + struct.pack("<I", 3)


def text(raw):
    return struct.pack("<Q", len(raw)) + raw


def with_counts(n_tensors, n_keys, rest=b""):
    return HEAD + struct.pack("<QQ", n_tensors, n_keys) + rest + bytes(64)


def one_tensor(name=b"t", shape=(4,), kind=0, offset=0, times=1, data=64):
    info = text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    head = HEAD + struct.pack("<QQ", times, 0) + info * times
    return head + bytes(-len(head) % 32) + bytes(data)


HOSTILE = {
    "empty": (b"", "0 bytes, too few"),
    "another format": (b"PK\x03\x04" + bytes(100), "does not start with GGUF"),
    "version 1": (b"GGUF" + struct.pack("<I", 1) + bytes(100), "of version 1"),
    "version of the future": (b"GGUF" + struct.pack("<I", 9) + bytes(100), "of version 9"),
    "big endian": (b"GGUF" + struct.pack(">I", 3) + bytes(100), "other byte order"),
    "a billion keys": (with_counts(0, 2**60), r"states 1,152,921,504,606,846,976 keys, 64 bytes are left"),
    "a billion tensors": (with_counts(2**63, 0), "tensors, 64 bytes are left"),
    "key of 2^60 bytes": (with_counts(0, 1, struct.pack("<Q", 2**60)), "a key has 1,152,921,504,606,846,976 bytes"),
    "text of 2^60 bytes": (with_counts(0, 1, text(b"k") + struct.pack("<IQ", 8, 2**60)), "bytes in 'k', 64 bytes are left"),
    "list of 2^60": (with_counts(0, 1, text(b"k") + struct.pack("<IIQ", 9, 4, 2**60)), "elements in 'k'"),
    "list of 2^60 texts": (with_counts(0, 1, text(b"k") + struct.pack("<IIQ", 9, 8, 2**60)), "texts in 'k'"),
    "list of lists": (with_counts(0, 1, text(b"k") + struct.pack("<IIQ", 9, 9, 1)), "elements of type 9"),
    "unknown type": (with_counts(0, 1, text(b"k") + struct.pack("<I", 77)), "unknown type 77"),
    "a key twice": (with_counts(0, 2, 2 * (text(b"k") + struct.pack("<IB", 7, 1))), "'k' is there twice"),
    "a key that is no text": (with_counts(0, 1, text(b"\xff\xfe") + struct.pack("<IB", 7, 1)), "no UTF-8"),
    "ends in a key": (HEAD + struct.pack("<QQ", 0, 1) + text(b"k" * 30), "ends inside"),
    "a tensor twice": (one_tensor(times=2), "'t' is there twice"),
    "a long name": (one_tensor(name=b"n" * 64), "at most 63 are allowed"),
    "nine dimensions": (one_tensor(shape=(1,) * 9), "9 dimensions"),
    "unknown block format": (one_tensor(kind=999), "type 999.*gguf package does not know"),
    "half a block": (one_tensor(shape=(31,), kind=8), "no whole blocks of Q8_0"),
    "a tensor beyond the end": (one_tensor(shape=(17,)), "ends beyond the file"),
    "a tensor of 2^200 values": (one_tensor(shape=(2**60, 2**60, 2**60, 2**20)), "ends beyond the file"),
    "an odd offset": (one_tensor(offset=8), "multiple of 32"),
    "a huge offset": (one_tensor(offset=2**64 - 32), "ends beyond the file"),
    "alignment 0": (with_counts(0, 1, text(b"general.alignment") + struct.pack("<II", 4, 0)), "no power of two"),
    "alignment 24": (with_counts(0, 1, text(b"general.alignment") + struct.pack("<II", 4, 24)), "no power of two"),
    "alignment as a text": (
        with_counts(0, 1, text(b"general.alignment") + struct.pack("<I", 8) + text(b"32")), "no power of two",
    ),
    "no tensors": (with_counts(0, 0), "holds no weights"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_one_line(name, tmp_path):
    raw, message = HOSTILE[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=message) as caught:
        open_model(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 and "m.gguf" in str(caught.value)


def test_tensors_that_overlap_are_refused(tmp_path):
    infos = [text(name) + struct.pack("<IQIQ", 1, 16, 0, offset) for name, offset in ((b"a", 0), (b"b", 32))]
    head = HEAD + struct.pack("<QQ", 2, 0) + b"".join(infos)
    (tmp_path / "m.gguf").write_bytes(head + bytes(-len(head) % 32) + bytes(128))
    with pytest.raises(ValueError, match="'a' and 'b' overlap"):
        read_head(tmp_path / "m.gguf")


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_is_no_file_is_named(kind, tmp_path):
    import os

    path = tmp_path / "m.gguf"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(ValueError, match="is not there|is a folder|is a pipe"):
        read_head(path)


def test_every_shorter_file_is_refused(tmp_path):
    raw = write_file(tmp_path / "m.gguf", n_layers=1).read_bytes()
    path = tmp_path / "short.gguf"
    for n in range(0, len(raw) - 32, 7):  # The last tensor is followed by less than 32 bytes of padding.
        path.write_bytes(raw[:n])
        with pytest.raises(ValueError):
            open_model(path)


def test_numbers_keep_their_type():
    for value, kind in ((3, UINT32), (-3, INT32), (0.5, FLOAT32)):
        assert Value.of(value, kind).value == value and len(Value.of(value, kind).raw) == 4
