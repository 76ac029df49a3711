"""Families nobody wrote a line for, drawn by a printed seed from what transformers offers: exact, or refused by name.

``SHOAL_FAMILY_SEED=7 pytest tests/test_unlisted_families.py`` draws others; ``SHOAL_FAMILY_COUNT`` draws more.
"""

import os
import random

import pytest
import torch
from families import FAMILIES, VOCAB
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.words.types import Batch, Unit

SEED = int(os.environ.get("SHOAL_FAMILY_SEED", "20261122"))
COUNT = int(os.environ.get("SHOAL_FAMILY_COUNT", "3"))
SMALL = dict(
    hidden_size=32, n_embd=32, d_model=32, dim=32, intermediate_size=48, ffn_dim=48, n_inner=48,
    moe_intermediate_size=16, num_attention_heads=4, n_head=4, n_heads=4, num_key_value_heads=2, num_hidden_layers=4,
    n_layer=4, n_layers=4, num_layers=4, decoder_layers=4, vocab_size=VOCAB, max_position_embeddings=64, n_positions=64,
    head_dim=8, num_experts=4, num_local_experts=4, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
    decoder_ffn_dim=48, decoder_attention_heads=4, word_embed_proj_dim=32, kv_lora_rank=16, q_lora_rank=16,
    qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, sliding_window=5, pad_token_id=0, bos_token_id=1,
    eos_token_id=2, attention_hidden_size=32, num_heads=4, ffn_hidden_size=48, shared_expert_intermediate_size=16,
    rotary_dim=4, layer_types=None, first_k_dense_replace=1, moe_shared_expert_intermediate_size=16, mamba_n_heads=4,
    mamba_d_head=16, mamba_d_ssm=64, mamba_num_heads=4, mamba_head_dim=16, n_groups=1, mamba_n_groups=1, state_size=8,
    linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8, lru_width=32,
)  # fmt: skip


def shrunken(model_type):
    """A tiny random model of any family, or None where the generic sizes do not make a valid one."""
    defaults = AutoConfig.for_model(model_type)
    if hasattr(defaults, "text_config") or getattr(defaults, "is_encoder_decoder", False):
        return None
    names = set(defaults.to_dict()) | set(defaults.attribute_map)
    sizes = {name: value for name, value in SMALL.items() if name in names}
    for alias, name in defaults.attribute_map.items():
        if alias in sizes and name in sizes:
            del sizes[alias]
    with torch.device("meta"):
        if (
            sum(p.numel() for p in AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes)).parameters())
            > 2e6
        ):
            return None
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes)).eval()
    with torch.no_grad():
        model(input_ids=torch.ones(1, 3, dtype=torch.long), use_cache=False)
    return model


def draw(count):
    """Yield ``count`` families of a seeded shuffle whose tiny model runs at all under its own forward."""
    rest = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(FAMILIES))
    random.Random(SEED).shuffle(rest)
    for model_type in rest:
        try:
            model = shrunken(model_type)
        except Exception:  # The family itself cannot be built this small; that says nothing about the engine.
            continue
        if model is not None:
            yield model_type, model
            count -= 1
        if count == 0:
            return


@pytest.mark.parametrize("count", [COUNT, pytest.param(200, marks=pytest.mark.slow)])
def test_unlisted_families_run_exactly_or_are_refused_by_name(count):
    outcomes = {}
    batch = Batch(torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(1)))
    for model_type, model in draw(count):
        with torch.no_grad():
            expected = model(input_ids=batch.ids_BT, use_cache=False).logits
        try:
            view = DecoderView(model)
        except ValueError as refusal:
            assert model.config.model_type in str(refusal)
            outcomes[model_type] = f"refused: {refusal}"
            continue
        assert torch.equal(view.logits(batch), expected), model_type
        removed = view.logits(batch, student=Student(frozenset({Unit("layer", 1)})))
        assert removed.isfinite().all()
        outcomes[model_type] = "exact"
    assert len(outcomes) >= COUNT
    print(f"\nseed {SEED}:", *(f"  {name}: {outcome}" for name, outcome in outcomes.items()), sep="\n")
