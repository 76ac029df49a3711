"""Small GGUF files of any architecture with random weights, written with the gguf package and read with it."""

from pathlib import Path

import gguf
import numpy as np

F32, F16, Q8_0, Q4_1 = (gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "Q8_0", "Q4_1"))


def write_file(path: Path, *, arch="llama", n_layers=6, kind=Q8_0, keys=(), split=0, alignment=None, seed=0) -> Path:
    """A file of ``n_layers`` blocks with two matrices and a norm each.

    Args:
        keys: further ones: (name after the architecture or whole name with a dot in front, value, type, type of elements).
        split: tensors per part; 0 for one file.
    """
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), arch, split_max_tensors=split)
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_name("Tiny")
    writer.add_size_label("9M")
    writer.add_organization("nobody")
    writer.add_block_count(n_layers)
    writer.add_embedding_length(32)
    writer.add_token_list(["a", "bc", "é", "日本", ""])
    writer.add_token_scores([0.5, -1.0, 0.0, 2.0, 1.0])
    for name, value, value_type, element in keys:
        writer.add_key_value(name[1:] if name.startswith(".") else f"{arch}.{name}", value, value_type, sub_type=element)
    names = ["token_embd.weight", "output_norm.weight"]
    names += [f"blk.{i}.{part}.weight" for i in range(n_layers) for part in ("attn_q", "ffn_down", "attn_norm")]
    for name in names:
        shape = (32,) if "norm" in name else (5, 32) if name.startswith("token") else (8, 32)
        as_kind = F32 if "norm" in name else kind
        writer.add_tensor(
            name, gguf.quants.quantize(random.standard_normal(shape).astype(np.float32), as_kind), raw_dtype=as_kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def keys_of(path: Path) -> dict:
    """Keys and values as the gguf package reads them; a text that is no UTF-8 stays bytes."""
    fields = {name: field for name, field in gguf.GGUFReader(path).fields.items() if not name.startswith("GGUF.")}
    return {name: _contents(field) for name, field in fields.items()}


def _contents(field):
    try:
        return field.contents()
    except UnicodeDecodeError:
        return [field.parts[i].tobytes() for i in field.data]


def tensors_of(path: Path) -> dict:
    """Name to (type, shape, bytes) as the gguf package reads them."""
    return {t.name: (int(t.tensor_type), tuple(t.shape.tolist()), t.data.tobytes()) for t in gguf.GGUFReader(path).tensors}
