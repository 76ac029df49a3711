"""A small Llama as a GGUF file, written with the gguf package by the rules of the format, and the same model in memory.

The format's own order: query and key rows of a head are interleaved pairs of the two halves that rotary embeddings rotate.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM

WIDTH, FFN, HEADS, KV_HEADS = 64, 96, 4, 2  # Rows are whole blocks of 32 values.
BYTES = sorted(ByteLevel.alphabet())
MERGES = ["t h", "th e", "Ġ the"]
TOKENS = [*BYTES, *(merge.replace(" ", "") for merge in MERGES), "<|end|>"]
TEMPLATE = "{% for m in messages %}<|end|>{{ m.role }} {{ m.content }}{% endfor %}"
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def tiny_llama(n_layers: int = 4) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=WIDTH,
        intermediate_size=FFN,
        num_hidden_layers=n_layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=len(TOKENS) - 1,
        eos_token_id=len(TOKENS) - 1,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.1)
    return model


def write_gguf(path: Path, model: Any, *, kind: str = "F32", split: int = 0) -> Path:
    """Write a model with matrices of one kind: ``F32``, ``F16``, or blocks such as ``Q8_0``."""
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("Tiny Llama")
    writer.add_license("apache-2.0")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(TOKENS) - 1) + [gguf.TokenType.CONTROL])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(len(TOKENS) - 1)
    writer.add_eos_token_id(len(TOKENS) - 1)
    writer.add_chat_template(TEMPLATE)
    if split:
        writer.add_uint16("split.count", split)
    for name, value in stored(model).items():
        as_kind = kind if value.ndim == 2 else "F32"
        blocks = gguf.quants.quantize(value, gguf.GGMLQuantizationType[as_kind])
        writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType[as_kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stored(model: Any) -> dict[str, np.ndarray]:
    """Tensors under the names and in the order of the format, fp32."""
    outside = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    found = {}
    for name, value in model.state_dict().items():
        path = name.removesuffix(".weight")
        if path in outside:
            found[f"{outside[path]}.weight"] = value.numpy()
            continue
        _, _, layer, part = path.split(".", 3)
        n_heads = {"self_attn.q_proj": HEADS, "self_attn.k_proj": KV_HEADS}.get(part)
        found[f"blk.{layer}.{NAMES[part]}.weight"] = (value if n_heads is None else interleaved(value, n_heads)).numpy()
    return found


def interleaved(rows: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Row i and row i + half of each head next to each other."""
    halves = rows.reshape(n_heads, 2, -1, rows.shape[1])
    return halves.transpose(1, 2).reshape(rows.shape).contiguous()
