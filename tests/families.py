"""Tiny random models of every family the engine is tested on: one row per family, all causal, all deterministic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB = 61
LLAMA: dict[str, Any] = dict(
    hidden_size=32,
    intermediate_size=48,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=VOCAB,
    max_position_embeddings=64,
    head_dim=8,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
MOE = dict(LLAMA, num_local_experts=4, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)


def _depth(name: str, n: int) -> dict[str, Any]:
    """Fields that hold one entry per layer: alternate window and full attention, the last one full."""
    if name in ("gemma2", "gemma3_text", "gpt_oss", "cohere2", "qwen2"):
        kinds = ["full_attention" if (i % 2 or i == n - 1) else "sliding_attention" for i in range(n)]
        return dict(layer_types=kinds, sliding_window=5)
    return {}


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "mistral": dict(LLAMA, sliding_window=5),
    "qwen2": dict(LLAMA, use_sliding_window=True, max_window_layers=0),
    "qwen3": LLAMA,
    "qwen3_moe": dict(MOE, decoder_sparse_step=1, mlp_only_layers=[1], norm_topk_prob=True),
    "mixtral": MOE,
    "gemma2": dict(LLAMA, query_pre_attn_scalar=8),
    "gemma3_text": dict(LLAMA, query_pre_attn_scalar=8),
    "phi": {k: v for k, v in LLAMA.items() if k != "head_dim"},
    "phi3": {k: v for k, v in LLAMA.items() if k != "head_dim"},
    "gpt2": dict(n_embd=32, n_head=4, n_positions=64, vocab_size=VOCAB, bos_token_id=1, eos_token_id=2, pad_token_id=0),
    "gpt_neox": dict(hidden_size=32, intermediate_size=48, num_attention_heads=4, vocab_size=VOCAB, max_position_embeddings=64),
    "gptj": dict(n_embd=32, n_head=4, n_positions=64, vocab_size=VOCAB, rotary_dim=4, bos_token_id=1, eos_token_id=2),
    "opt": dict(
        hidden_size=32, ffn_dim=48, num_attention_heads=4, vocab_size=VOCAB, max_position_embeddings=64,
        word_embed_proj_dim=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ),
    "bloom": dict(hidden_size=32, n_head=4, vocab_size=VOCAB, bos_token_id=1, eos_token_id=2, pad_token_id=0),
    "falcon": dict(
        hidden_size=32, num_attention_heads=4, vocab_size=VOCAB, alibi=False, new_decoder_architecture=False,
        multi_query=True, parallel_attn=True, bias=False, bos_token_id=1, eos_token_id=2,
    ),
    "mpt": dict(d_model=32, n_heads=4, expansion_ratio=2, max_seq_len=64, vocab_size=VOCAB),
    "olmo2": LLAMA,
    "granite": dict(LLAMA, residual_multiplier=0.22, embedding_multiplier=12.0, logits_scaling=8.0),
    "smollm3": dict(LLAMA, no_rope_layer_interval=2),
    "cohere2": LLAMA,
    "starcoder2": dict(LLAMA, use_bias=True),
    "stablelm": {k: v for k, v in LLAMA.items() if k != "head_dim"},
    "deepseek_v3": dict(
        hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_attention_heads=4, num_key_value_heads=4,
        n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, n_shared_experts=1, first_k_dense_replace=2,
        q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, vocab_size=VOCAB,
        max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    ),
    "gpt_oss": dict(MOE, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
    "bitnet": LLAMA,
}  # fmt: skip


UNLIKE = ("deepseek_v3", "falcon", "gemma3_text", "gpt2", "gpt_oss", "llama", "qwen3_moe")
"""Those that differ most: latent attention, parallel sublayers, windows and four norms, biases and transposed maps, packed and
listed experts. What goes through whole fits and trainings goes through these in the gate, and through all in the slow tests."""


def every_family() -> list[Any]:
    return [name if name in UNLIKE else pytest.param(name, marks=pytest.mark.slow) for name in sorted(FAMILIES)]


def tiny_config(name: str, *, n_layers: int = 6) -> Any:
    """Config of a family's tiny model; ``num_hidden_layers`` goes through the family's own alias."""
    config = AutoConfig.for_model(name, **FAMILIES[name], **_depth(name, n_layers), **{_depth_field(name): n_layers})
    return config


def _depth_field(name: str) -> str:
    return {"gpt2": "n_layer", "gptj": "n_layer", "bloom": "n_layer", "mpt": "n_layers"}.get(name, "num_hidden_layers")


def tiny_model(name: str, *, n_layers: int = 6, seed: int = 0) -> Any:
    """A random float32 model in eval mode whose layers all matter: weights drawn with a spread that moves the stream."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(name, n_layers=n_layers)).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.1)
            elif path.endswith("bias"):
                parameter.normal_(0.0, 0.05)
    return model
