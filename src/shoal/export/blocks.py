"""The format ``blocks``: layers without attention or MLP as engines run them, a nemotron-nas folder or a deci GGUF file.

A stock checkpoint keeps such a layer whole with a zeroed output map: it loads everywhere and saves nothing. Here what
contributes nothing is left out, with its norm and its part of the cache. Which sublayers these are is read from the weights:
their output maps are zero. Schemas: vLLM's ``nemotron_nas``, MLX-LM's ``nemotron-nas`` and llama.cpp's ``deci``.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shoal.engine.gguf_head import STRING, UINT32, Value
from shoal.engine.shards import INDEX, SINGLE, read_shards
from shoal.export.exporter import Exported, Exporter, Options, StudentFolder
from shoal.export.gguf.blocks import KINDS
from shoal.export.gguf.convert import FILE_TYPES, folder_tensors, head_size, model_keys, outgoing, rotary_of, why_not
from shoal.export.gguf.file_parts import open_model
from shoal.export.gguf.stored_weights import StoredWeights
from shoal.export.gguf.tokenizer import tokenizer_keys
from shoal.export.gguf.write_file import write_gguf
from shoal.words.reading import read_json

LAYERS = "model.layers."
OUTPUT_MAPS = {"attn": "self_attn.o_proj.weight", "mlp": "mlp.down_proj.weight"}
PARTS = {"attn": ("self_attn.", "input_layernorm."), "mlp": ("mlp.", "post_attention_layernorm.")}
FAMILIES = ("llama", "mistral")
MULTIPLE = 256  # Engines round the width of the MLP, which is stated as a multiple of that of the model, up to this.
NARROW = 32  # llama.cpp needs a zero MLP of this width where there is none: without it the output of the attention is lost.
CONFIG_FILE = "configuration_blocks"
CONFIG_CODE = '''"""A Llama whose layers may lack attention or MLP: what engines read as nemotron-nas. Written by Shoal."""

from types import SimpleNamespace

from transformers import LlamaConfig


class Block(SimpleNamespace):
    """One layer: ``attention`` and ``ffn``, read by attribute."""

    def to_dict(self):
        return {"attention": dict(vars(self.attention)), "ffn": dict(vars(self.ffn))}


class BlocksConfig(LlamaConfig):
    """As LlamaConfig. ``block_configs``: what each layer has."""

    model_type = "nemotron-nas"
    block_configs: list | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.block_configs = [
            one
            if isinstance(one, Block)
            else Block(attention=SimpleNamespace(**one["attention"]), ffn=SimpleNamespace(**one["ffn"]))
            for one in self.block_configs or []
        ]

    def to_dict(self):
        content = super().to_dict()
        content["block_configs"] = [one.to_dict() if isinstance(one, Block) else one for one in self.block_configs]
        return content
'''

Off = Sequence[frozenset[str]]
"""Per layer, which sublayers contribute nothing."""


def sublayers_off(weights: StoredWeights, n_layers: int) -> list[frozenset[str]]:
    """Sublayers whose output map is zero, layer by layer."""
    found = []
    for layer in range(n_layers):
        names = {kind: f"{LAYERS}{layer}.{path}" for kind, path in OUTPUT_MAPS.items()}
        found.append(frozenset(kind for kind, name in names.items() if name in weights and not weights.values(name).any()))
    return found


def refuses(student: StudentFolder, options: Options) -> str | None:
    config = student.config
    family = config.get("model_type")
    if student.code is not None:
        return student.code
    if options.kind is not None and options.kind not in KINDS:
        return f"--type {options.kind!r} cannot be written, known: {', '.join(KINDS)}"
    if family not in FAMILIES:
        return f"engines know uneven layers of Llama-like models only ({', '.join(FAMILIES)}), not of {family!r}"
    if config.get("hidden_act") != "silu" or head_size(config) * config["num_attention_heads"] != config["hidden_size"]:
        return "engines know uneven layers with SiLU and heads that share the width of the model only"
    if config.get("attention_bias") or config.get("mlp_bias"):
        return "engines know uneven layers without biases only"
    refusal = why_not(config)
    if refusal is not None:
        return refusal
    off = sublayers_off(StoredWeights(student.folder), config["num_hidden_layers"])
    if not any(off):
        return "every layer has its attention and its MLP; its plain folder, or gguf, is what engines want"
    if "attn" in off[0]:
        return "layer 0 has no attention, which vLLM and llama.cpp need in the first layer"
    return None


def write(student: StudentFolder, out: Path | None, options: Options) -> Exported:
    assert out is not None
    weights = StoredWeights(student.folder)
    off = sublayers_off(weights, student.config["num_hidden_layers"])
    counts = {kind: sum(kind in one for one in off) for kind in OUTPUT_MAPS}
    said = f"{counts['attn']} layers without attention, {counts['mlp']} without MLP, of {len(off)}"
    if out.suffix == ".gguf":
        _write_file(student, weights, off, out, options)
        return Exported(out, said, ("architecture deci: llama.cpp runs it; transformers does not read it back",))
    if options.kind is not None:
        raise ValueError("--type belongs to a file; name it --out NAME.gguf, or leave the type out")
    _write_folder(student, off, out)
    note = "vLLM loads it with trust_remote_code=True (a config of 20 lines); MLX-LM needs nothing; transformers has no model"
    return Exported(out, said, (note,))


def block_configs(config: Mapping[str, Any], off: Off) -> list[dict[str, Any]]:
    """The entry of every layer.

    Raises:
        ValueError: the width of the MLP cannot be stated.
    """
    width, ffn = config["hidden_size"], config["intermediate_size"]
    share = 1.5 * ffn / width
    made = int(2 * share * width / 3)
    if made + -made % MULTIPLE != ffn:
        raise ValueError(
            f"an MLP of {ffn} cannot be stated in this format, whose widths are multiples of {MULTIPLE}; write a file instead: "
            "--out NAME.gguf"
        )
    group = config["num_attention_heads"] // (config.get("num_key_value_heads") or config["num_attention_heads"])
    return [
        {
            "attention": {
                "no_op": "attn" in one,
                "replace_with_linear": False,
                "n_heads_in_group": None if "attn" in one else group,
            },
            "ffn": {"no_op": "mlp" in one, "replace_with_linear": False, "ffn_mult": None if "mlp" in one else share},
        }
        for one in off
    ]


def _write_folder(student: StudentFolder, off: Off, out: Path) -> None:
    from shoal.checkpoint.copy_shards import Copy, copied_bytes, copy_shard, write_index
    from shoal.checkpoint.new_folder import copy_side_files, new_folder, side_files

    content = read_json(student.folder / "config.json")
    content |= {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": "nemotron-nas",
        "auto_map": {"AutoConfig": f"{CONFIG_FILE}.BlocksConfig"},
        "block_configs": block_configs(student.config, off),
        "rope_theta": rotary_of(student.config).base,
    }
    shards = read_shards(student.folder)
    copies = [[Copy(name, name, None) for name in shard.slots if not is_gone(name, off)] for shard in shards]
    n_bytes = sum(copied_bytes(shard, some, AsStored()) for shard, some in zip(shards, copies, strict=True))
    n_beside = sum(path.stat().st_size for path in side_files(student.folder))
    with new_folder(out, n_bytes=n_bytes + n_beside) as folder:
        places = {}
        for shard, some in zip(shards, copies, strict=True):
            copy_shard(shard, some, folder / shard.path.name, new=AsStored())
            places.update({one.given: shard.path.name for one in some})
        if len(shards) > 1 or shards[0].path.name != SINGLE:
            write_index(folder / INDEX, places, n_bytes)
        (folder / "config.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / f"{CONFIG_FILE}.py").write_text(CONFIG_CODE, encoding="utf-8")
        copy_side_files(student.folder, folder)
        shutil.rmtree(folder / "__pycache__", ignore_errors=True)


def is_gone(name: str, off: Off) -> bool:
    """Whether a tensor belongs to a sublayer that is off."""
    if not name.startswith(LAYERS):
        return False
    layer, _, rest = name.removeprefix(LAYERS).partition(".")
    return any(rest.startswith(PARTS[kind]) for kind in off[int(layer)])


class AsStored:
    """No change of any tensor."""

    def written_dtype(self, name: str, slot: Any) -> None:
        return None

    def value(self, name: str, position: int | None) -> None:
        return None


def _write_file(student: StudentFolder, weights: StoredWeights, off: Off, out: Path, options: Options) -> None:
    config, kind = student.config, options.kind or "f16"
    keys = dict(model_keys(config))
    heads, n_kv = config["num_attention_heads"], config.get("num_key_value_heads") or config["num_attention_heads"]
    lists = {
        "attention.head_count": [0 if "attn" in one else heads for one in off],
        "attention.head_count_kv": [0 if "attn" in one else n_kv for one in off],
        "feed_forward_length": [NARROW if "mlp" in one else config["intermediate_size"] for one in off],
    }
    keys |= {name: Value.of_list(values, UINT32) for name, values in lists.items()}
    everything = {
        "general.architecture": Value.of("deci", STRING),
        "general.type": Value.of("model", STRING),
        "general.name": Value.of(student.name, STRING),
        "general.file_type": Value.of(FILE_TYPES[kind], UINT32),
        "general.quantization_version": Value.of(2, UINT32),
        **{f"deci.{name}": value for name, value in keys.items()},
        **tokenizer_keys(student.folder, config["vocab_size"]),
    }
    kept = [name for name in weights.names if not is_gone(name, off)]
    tensors = folder_tensors(weights, config, "llama", kind, names=kept)
    width = config["hidden_size"]
    for layer, one in enumerate(off):
        if "mlp" in one:
            tensors.append(outgoing(f"blk.{layer}.ffn_norm.weight", np.zeros(width), "f32"))
            for part in ("gate", "up"):
                tensors.append(outgoing(f"blk.{layer}.ffn_{part}.weight", np.zeros((NARROW, width)), "f16"))
            tensors.append(outgoing(f"blk.{layer}.ffn_down.weight", np.zeros((width, NARROW)), "f16"))
    write_gguf(out, everything, tensors, overwrite=options.overwrite)


def verify(student: StudentFolder, done: Exported) -> dict[str, Any]:
    """Tensors written against those of the sublayers that are there.

    Raises:
        ValueError: they differ.
    """
    assert done.path is not None
    weights = StoredWeights(student.folder)
    off = sublayers_off(weights, student.config["num_hidden_layers"])
    wanted = {name for name in weights.names if not is_gone(name, off)}
    if done.path.suffix == ".gguf":
        model = open_model(done.path)
        if model.n_layers != len(off):
            raise ValueError(f"{done.path} has {model.n_layers} layers, the student {len(off)}")
        return {"tensors": len(model.tensors), "bytes": done.path.stat().st_size}
    found = {name for shard in read_shards(done.path) for name in shard.slots}
    if found != wanted:
        raise ValueError(f"{done.path}: tensors differ from the student's, first {sorted(found ^ wanted)[0]!r}")
    return {"tensors": len(found)}


BLOCKS = Exporter(
    name="blocks",
    about="layers without attention or MLP left out: a nemotron-nas folder (vLLM, MLX), or --out NAME.gguf for llama.cpp",
    refuses=refuses,
    write=write,
    verify=verify,
    writes_folder=lambda out: out.suffix != ".gguf",
    takes=frozenset({"kind"}),
)
