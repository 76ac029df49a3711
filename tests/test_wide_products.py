"""Linear maps of 16-bit models on a processor that is slow at them: the exact product, rounded once; nothing else changes."""

import copy

import pytest
import torch
from families import VOCAB, tiny_model
from torch import nn
from torch.nn.functional import linear as plain_linear
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from shoal.engine import wide_products
from shoal.engine.open import load_strictly
from shoal.engine.wide_products import HALVES, linear, widen

IDS = torch.randint(3, VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def slow_processor(monkeypatch):
    monkeypatch.setattr(wide_products, "multiplies_slowly", lambda dtype: dtype in HALVES)


def drawn(*shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("most", [1 << 21, 100])
def test_a_product_and_its_gradients_are_the_exact_ones_rounded_once(dtype, has_bias, most, monkeypatch):
    monkeypatch.setattr(wide_products, "MOST_NUMBERS", most)  # Blocks of some rows and tokens give the same.
    x, w, bias = drawn(2, 9, 24, dtype=dtype), drawn(40, 24, dtype=dtype, seed=1), drawn(40, dtype=dtype, seed=2)
    given = [one.requires_grad_() for one in ((x, w, bias) if has_bias else (x, w))]
    exact = [one.detach().double().requires_grad_() for one in given]
    y, z = linear(*given, *[None] * (3 - len(given))), plain_linear(*exact)
    upstream = drawn(2, 9, 40, dtype=dtype, seed=3)
    y.backward(upstream)
    z.backward(upstream.double())
    for ours, theirs in zip([y, *(one.grad for one in given)], [z, *(one.grad for one in exact)], strict=True):
        assert ours.dtype == dtype
        # Half a unit of the last of 8 or 11 bits, and what sums in float32 add where numbers cancel.
        torch.testing.assert_close(ours.double(), theirs, rtol=torch.finfo(dtype).eps / 2, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_a_widened_model_is_the_model_up_to_rounding_and_is_saved_as_it_was(family, tmp_path):
    model = tiny_model(family).to(torch.bfloat16)
    was, expected = copy.deepcopy(model.state_dict()), copy.deepcopy(model).float()(IDS).logits
    model.save_pretrained(tmp_path)
    opened = load_strictly(tmp_path)
    calls = []
    kept = wide_products._multiplied
    with pytest.MonkeyPatch.context() as patched, torch.no_grad():
        patched.setattr(wide_products, "_multiplied", lambda *given: calls.append(1) or kept(*given))
        found = opened(IDS).logits
        assert len(calls) == sum(type(one) is nn.Linear or type(one).__name__ == "Conv1D" for one in opened.modules())
        torch.testing.assert_close(copy.deepcopy(opened)(IDS).logits, found, rtol=0, atol=0)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected.detach(), rtol=0, atol=0.03 * expected.abs().max().item())
    assert all(torch.equal(value, was[name]) for name, value in opened.state_dict().items())


@pytest.fixture
def own_attention():
    """Transformers' own attention, and its table left as it was."""
    kept = ALL_ATTENTION_FUNCTIONS["sdpa"]
    AttentionInterface.register("sdpa", sdpa_attention_forward)
    yield
    AttentionInterface.register("sdpa", kept)


def attend(*states, mask=None, bias=None, autocast=False):
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = 1, True
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, *states, mask, position_bias=bias)[0]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_trained_attention_and_its_gradients_are_the_exact_ones_rounded_once(own_attention, dtype, masked, biased):
    given = [drawn(2, 3, 9, 8, dtype=dtype, seed=seed).requires_grad_() for seed in range(3)]
    mask = drawn(2, 1, 9, 9, dtype=dtype, seed=3) if masked else None
    bias = drawn(2, 3, 9, 9, dtype=dtype, seed=5) if biased else None
    exact = [one.detach().double().requires_grad_() for one in given]
    wanted = attend(*exact, mask=mask if mask is None else mask.double(), bias=bias if bias is None else bias.double())
    widen(nn.Linear(8, 8, dtype=dtype))
    widen(nn.Linear(8, 8, dtype=dtype))  # Once is enough.
    found = attend(*given, mask=mask, bias=bias)
    upstream = drawn(*found.shape, dtype=dtype, seed=4)
    found.backward(upstream)
    wanted.backward(upstream.double())
    for ours, theirs in zip([found, *(one.grad for one in given)], [wanted, *(one.grad for one in exact)], strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), theirs, rtol=torch.finfo(dtype).eps / 2, atol=1e-5)


def test_attention_is_left_alone_without_a_gradient_and_rounds_under_autocast(own_attention):
    states = [drawn(2, 3, 9, 8, dtype=torch.bfloat16, seed=seed) for seed in range(3)]
    plain = attend(*states)
    widen(nn.Linear(8, 8, dtype=torch.bfloat16))
    assert torch.equal(attend(*states), plain)
    wide = [one.float().requires_grad_() for one in states]
    assert torch.equal(attend(*wide), attend(*(one.detach() for one in wide)))  # Float32 is no 16-bit type.
    rounded = attend(*wide, autocast=True)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded, attend(*wide).bfloat16(), rtol=0, atol=0)


def test_maps_of_four_bits_multiply_in_float32_and_round_once():
    bits = pytest.importorskip("bitsandbytes").nn
    from bitsandbytes.functional import dequantize_4bit

    x = drawn(9, 64, dtype=torch.bfloat16).requires_grad_()
    made = bits.Linear4bit(64, 40, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    made.weight = bits.Params4bit(drawn(40, 64, dtype=torch.bfloat16, seed=1), requires_grad=False, quant_type="nf4")
    model = nn.Sequential(made).to("cpu").train()
    made(x)  # Packs the weights.
    widen(model)
    state = copy.copy(made.weight.quant_state)
    unpacked = dequantize_4bit(made.weight.data, state).double()
    state.dtype = torch.float32
    exact = dequantize_4bit(made.weight.data, state).double()  # The product's own numbers, not rounded to 16 bits.
    upstream = drawn(9, 40, dtype=torch.bfloat16, seed=2)
    found = model(x)
    found.backward(upstream)
    assert found.dtype == x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), x.detach().double() @ exact.mT, rtol=2**-8, atol=1e-5)
    torch.testing.assert_close(x.grad.double(), upstream.double() @ unpacked, rtol=2**-8, atol=1e-5)


def test_other_types_few_tokens_and_other_maps_are_left_alone():
    exact = nn.Linear(4, 3)
    widen(nn.Sequential(exact))
    assert "forward" not in vars(exact)
    x, w = drawn(1, 4, 24, dtype=torch.bfloat16), drawn(40, 24, dtype=torch.bfloat16, seed=1)
    assert torch.equal(linear(x, w, None), plain_linear(x, w))
    wide = drawn(9, 24, dtype=torch.float32)
    assert torch.equal(linear(wide, w.float(), None), plain_linear(wide, w.float()))


def test_under_autocast_a_map_computes_in_its_type():
    x, w = drawn(9, 24, dtype=torch.float32), drawn(40, 24, dtype=torch.float32, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear(x, w, None)
    exact = plain_linear(x.bfloat16().double(), w.bfloat16().double())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-5)
