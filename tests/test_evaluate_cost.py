"""Costs equal what a FLOP counter, a real cache and the model itself say, on every family."""

from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES, LLAMA, MOE, VOCAB, tiny_model
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from shoal.edits.replace.layer import LayerReplacement
from shoal.engine.student import Attached, Student
from shoal.engine.view import DecoderView
from shoal.evaluate.cost import cost, costs, n_keys
from shoal.words.types import Span, Unit

T = 5  # The length is within the window of the tiny sliding-window models, so eager T x T products are those of the formula.


@pytest.fixture(params=sorted(FAMILIES), scope="module")
def model(request):
    return tiny_model(request.param, n_layers=4)


def counted(model):
    """MACs per token of the model's own forward; eager attention and experts, because fused kernels are not all counted."""
    model.set_attn_implementation("eager")
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    ids = torch.arange(3, 3 + T)[None]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False)
    return counter.get_total_flops() / 2 / T


def test_macs_equal_the_flop_counter(model):
    assert cost(DecoderView(model), context=T).macs_per_token == counted(model)


def test_parameters_and_bytes_are_the_models_own(model):
    got = cost(DecoderView(model), context=T)
    assert got.parameters == sum(p.numel() for p in model.parameters())
    assert got.weight_bytes == 4 * got.parameters
    assert got.layers == 4


def test_kv_bytes_equal_a_real_cache(model):
    n = 4  # A sliding-window cache keeps window - 1 tokens between steps.
    with torch.no_grad():
        cache = model(input_ids=torch.arange(3, 3 + n)[None], use_cache=True).past_key_values
    real = sum(part.numel() * part.element_size() for layer in cache.layers for part in (layer.keys, layer.values))
    assert cost(DecoderView(model), context=n).kv_bytes_per_token == real / n


def test_students_that_are_counted_together_cost_what_each_costs_alone(model):
    view = DecoderView(model)
    cut, less = Student(frozenset({Unit("layer", 1)})), Student(frozenset({Unit("layer", 1), Unit("attn", 2), Unit("mlp", 3)}))
    students = [less, Student(), cut, less]
    together = list(costs(view, students, context=T))
    assert together == [cost(view, context=T, student=one) for one in students]
    assert together[2].macs_per_token > together[0].macs_per_token and together[0] == together[3]


def test_costs_are_sums_over_layers(model):
    view = DecoderView(model)

    def without(*layers):
        return cost(view, context=T, student=Student(frozenset(Unit("layer", layer) for layer in layers)))

    whole, head = without(), without(0, 1, 2, 3)
    alone = [without(layer) for layer in range(4)]
    layers = model.get_submodule(view.layers_path)
    assert head.layers == 0 and [one.layers for one in alone] == [3] * 4
    assert [whole.parameters - one.parameters for one in alone] == [
        sum(p.numel() for p in layer.parameters()) for layer in layers
    ]
    assert sum(whole.macs_per_token - one.macs_per_token for one in alone) + head.macs_per_token == whole.macs_per_token
    assert sum(whole.kv_bytes_per_token - one.kv_bytes_per_token for one in alone) == whole.kv_bytes_per_token


@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings_are_stored_once_and_run_twice(tied):
    model = tiny_model("llama", n_layers=2)
    model.config.tie_word_embeddings = tied
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    got = cost(DecoderView(model), context=1)
    other = cost(DecoderView(tiny_model("llama", n_layers=2)), context=1)
    assert got.macs_per_token == other.macs_per_token
    assert other.parameters - got.parameters == (VOCAB * 32 if tied else 0)


def test_closed_form_of_a_llama():
    hidden, ffn, q, kv, layers, context = 32, 48, 32, 16, 3, 11
    per_layer = hidden * (q + kv + kv) + q * hidden + 3 * hidden * ffn + 2 * q * context
    got = cost(DecoderView(tiny_model("llama", n_layers=layers)), context=context)
    assert got.macs_per_token == layers * per_layer + hidden * VOCAB
    assert got.kv_bytes_per_token == layers * 2 * kv * 4


def test_removed_sublayers_cost_nothing_and_keep_the_rest():
    view = DecoderView(tiny_model("llama", n_layers=3))
    whole = cost(view, context=7)
    no_attention = cost(view, context=7, student=Student(frozenset({Unit("attn", 1)})))
    no_mlp = cost(view, context=7, student=Student(frozenset({Unit("mlp", 1)})))
    assert whole.macs_per_token - no_attention.macs_per_token == 32 * 64 + 32 * 32 + 2 * 32 * 7
    assert whole.macs_per_token - no_mlp.macs_per_token == whole.parameters - no_mlp.parameters == 3 * 32 * 48
    assert no_attention.kv_bytes_per_token == whole.kv_bytes_per_token * 2 / 3
    assert no_mlp.kv_bytes_per_token == whole.kv_bytes_per_token


def test_windows_bound_the_keys_of_their_layers_only():
    view = DecoderView(tiny_model("gemma3_text", n_layers=4))  # Layers 0 and 2 see 5 tokens, 1 and 3 see all.
    short, long = cost(view, context=5), cost(view, context=50)
    assert long.macs_per_token - short.macs_per_token == 2 * 2 * 32 * 45
    assert long.kv_bytes_per_token == 2 * 2 * 16 * 4 * (50 + 5) / 50


@pytest.mark.parametrize(
    ("config", "short", "long"),
    [
        (dict(), 5, 50),
        (dict(sliding_window=8), 5, 8),
        (dict(sliding_window=None), 5, 50),
        (dict(layer_types=["sliding_attention"], sliding_window=8), 5, 8),
        (dict(layer_types=["full_attention"], sliding_window=8), 5, 50),
        (dict(layer_types=["chunked_attention"], attention_chunk_size=16), 5, 16),
        (dict(layer_types=["hybrid"]), 5, 50),
        (dict(layer_types=["linear_attention"]), 0, 0),
        (dict(layer_types=["mamba"]), 0, 0),
        (dict(layer_types=["conv"]), 0, 0),
    ],
)
def test_keys_by_kind_of_layer(config, short, long):
    config = SimpleNamespace(**config)
    assert (n_keys(config, 0, context=5), n_keys(config, 0, context=50)) == (short, long)


def test_a_layer_replacement_costs_a_layer():
    view = DecoderView(tiny_model("qwen3", n_layers=4))
    module = LayerReplacement().build(view, Span(1, 3))
    student = Student(attached=(Attached(Span(1, 3), module, 1),))
    assert cost(view, context=T, student=student) == cost(view, context=T, student=Student(frozenset({Unit("layer", 1)})))


# Hybrids whose layers call attention, states and MLPs by one name, and how many of their layers attend.
MIXED = {
    "nemotron_h": (
        dict(
            LLAMA, layers_block_type=["mamba", "attention", "mlp", "attention"], mamba_num_heads=4, mamba_head_dim=16,
            ssm_state_size=8, n_groups=1,
        ),
        2,
    ),
    "recurrent_gemma": (dict(LLAMA, lru_width=32, num_hidden_layers=4, attention_window_size=16), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXED)
def test_attention_that_shares_its_name_with_states_has_keys(name):
    fields, n_attend = MIXED[name]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **fields)).eval()
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.arange(3, 3 + T)[None], use_cache=True, past_key_values=cache)
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers if getattr(layer, "keys", None) is not None)
    view = DecoderView(model)
    short, long = (cost(view, context=context) for context in (T, T + 1))
    assert short.kv_bytes_per_token == real / T > 0
    assert long.macs_per_token - short.macs_per_token == n_attend * 4 * (8 + 8)  # 4 heads whose queries and values have 8.


def test_experts_packed_under_any_name_are_idle():
    """JetMoE has experts of attention and of the MLP, packed as ``weight`` of 3 dimensions; a token meets 2 of 4."""
    fields = {name: value for name, value in MOE.items() if name != "head_dim"}
    config = AutoConfig.for_model("jetmoe", **fields, kv_channels=8, num_hidden_layers=3)
    model = AutoModelForCausalLM.from_config(config).eval()
    packed = sum(weight.numel() for weight in model.parameters() if weight.ndim == 3)
    got = cost(DecoderView(model), context=T)
    assert got.active_parameters == got.parameters - packed / 2
    assert got.macs_per_token == counted(model)


def test_unknown_expert_routing_is_unknown_not_guessed():
    model = tiny_model("mixtral", n_layers=2)
    view = DecoderView(model)
    model.config.__dict__["num_experts_per_tok"] = None
    assert cost(view, context=T).macs_per_token is None


@pytest.mark.parametrize("tied", [False, True])
def test_weight_bytes_are_those_of_the_saved_tensors(tmp_path, tied):
    model = tiny_model("llama", n_layers=2).bfloat16()
    if tied:
        model.config.tie_word_embeddings = True
        model.lm_head.weight = model.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert cost(DecoderView(model), context=1).weight_bytes == sum(t.numel() * t.element_size() for t in saved.values())


def test_context_below_one_is_refused():
    with pytest.raises(ValueError, match="context=0 needs at least 1"):
        cost(DecoderView(tiny_model("llama", n_layers=2)), context=0)
