"""Small quantised checkpoints as they lie on the hub: real ones by bitsandbytes, the others put together from their formulas.

Every linear map of the layers is packed; embeddings, norms and head stay plain. ``gptq`` and ``awq`` hold random codes: no test
opens them.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from text_world import word_tokenizer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GptOssConfig, LlamaConfig

N_WORDS = 40
SIZES = dict(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=16, vocab_size=64)
SIZES |= dict(max_position_embeddings=64, tie_word_embeddings=False)
BLOCK = 32  # A block of fp8 has so many rows and columns, a block of mxfp4 so many inputs.
FP8_MOST = 448.0


def write_quantised(folder: Path, kind: str, *, n_layers: int = 6, seed: int = 0) -> Path:
    """A checkpoint of one of :data:`KINDS`, with a tokenizer."""
    torch.manual_seed(seed)
    config = (GptOssConfig if kind == "mxfp4" else LlamaConfig)(
        **SIZES, intermediate_size=128, num_hidden_layers=n_layers, **(EXPERTS if kind == "mxfp4" else {})
    )
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    word_tokenizer(N_WORDS).save_pretrained(folder)
    KINDS[kind](folder)
    return folder


EXPERTS = dict(num_local_experts=4, num_experts_per_tok=2, layer_types=None, sliding_window=8, dtype="bfloat16")


def by_bitsandbytes(folder: Path, **how) -> None:
    packed = AutoModelForCausalLM.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**how), device_map={"": "cpu"})
    packed.save_pretrained(folder)


def repack(folder: Path, pack, stated: dict, *, ends: str = "_proj.weight") -> None:
    """Replace the maps of the layers by what ``pack(name, weight_NK)`` makes of them, and state the method."""
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(ends) and ".layers." in name]:
        tensors.update(pack(name.removesuffix("weight"), tensors.pop(name)))
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": stated}, indent=2))


def to_fp8_blocks(stem, weight_NK):
    """One scale per block: the weight is the code times the scale (DeepSeek-V3, arXiv 2412.19437)."""
    n, k = weight_NK.shape
    blocks = weight_NK.reshape(n // BLOCK, BLOCK, k // BLOCK, BLOCK)
    scale = blocks.abs().amax((1, 3)) / FP8_MOST
    codes = (blocks / scale[:, None, :, None]).reshape(n, k).to(torch.float8_e4m3fn)
    return {f"{stem}weight": codes, f"{stem}weight_scale_inv": scale}


def to_fp8_rows(stem, weight_NK):
    """One scale per output, as compressed-tensors stores it."""
    scale = weight_NK.abs().amax(1, keepdim=True) / FP8_MOST
    return {f"{stem}weight": (weight_NK / scale).to(torch.float8_e4m3fn), f"{stem}weight_scale": scale}


def to_gptq(stem, weight_NK):
    n, k = weight_NK.shape
    return {
        f"{stem}qweight": torch.randint(0, 2**31 - 1, (k // 8, n), dtype=torch.int32),
        f"{stem}qzeros": torch.randint(0, 2**31 - 1, (1, n // 8), dtype=torch.int32),
        f"{stem}scales": torch.rand(1, n).half(),
        f"{stem}g_idx": torch.zeros(k, dtype=torch.int32),
    }


def to_awq(stem, weight_NK):
    n, k = weight_NK.shape
    return {
        f"{stem}qweight": torch.randint(0, 2**31 - 1, (k, n // 8), dtype=torch.int32),
        f"{stem}qzeros": torch.randint(0, 2**31 - 1, (k // 32, n // 8), dtype=torch.int32),
        f"{stem}scales": torch.rand(k // 32, n).half(),
    }


def to_mxfp4(folder: Path) -> None:
    """Experts as blocks of 32 four-bit numbers with one power of two each (OCP MX); random codes, small scales."""
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        n_experts, k, n = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (n_experts, n, k // BLOCK, BLOCK // 2), dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(118, 122, (n_experts, n, k // BLOCK), dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    (folder / "config.json").write_text(json.dumps(config, indent=2))


FP8 = dict(quant_method="fp8", activation_scheme="dynamic", fmt="e4m3", weight_block_size=[BLOCK, BLOCK])
WEIGHTS = dict(num_bits=8, type="float", symmetric=True, strategy="channel", dynamic=False)
GROUP = dict(targets=["Linear"], weights=WEIGHTS, input_activations=None, output_activations=None)
COMPRESSED = dict(
    quant_method="compressed-tensors", format="float-quantized", quantization_status="compressed", ignore=["lm_head"],
    config_groups={"group_0": GROUP}, kv_cache_scheme=None, global_compression_ratio=None,
)  # fmt: skip
GPTQ = dict(quant_method="gptq", bits=4, group_size=-1, desc_act=False, sym=True)
AWQ = dict(quant_method="awq", bits=4, group_size=32, zero_point=True, version="gemm")

KINDS = {
    "nf4": lambda folder: by_bitsandbytes(folder, load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "int8": lambda folder: by_bitsandbytes(folder, load_in_8bit=True),
    "fp8": lambda folder: repack(folder, to_fp8_blocks, FP8),
    "mxfp4": to_mxfp4,
    "compressed-tensors": lambda folder: repack(folder, to_fp8_rows, COMPRESSED),
    "gptq": lambda folder: repack(folder, to_gptq, GPTQ),
    "awq": lambda folder: repack(folder, to_awq, AWQ),
}
