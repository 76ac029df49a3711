"""Blocks against the packages that maintain their formats, each where it is installed.

Both run on a processor: `pip install compressed-tensors optimum`, and `pip install --no-deps gptqmodel` with what its import
asks for. Codes, scales and zeros are drawn at random over all their values, so no field of a word is left out.
"""

import importlib.util
import json

import pytest
import torch
from quantised_world import write_quantised
from safetensors.torch import load_file, save_file

from shoal.engine.packed import awq, compressed_tensors, gptq

N, K, GROUP = 32, 128, 16


def words(*shape, seed=0):
    """32-bit words with every bit drawn."""
    return torch.randint(-(2**31), 2**31, shape, generator=torch.Generator().manual_seed(seed)).to(torch.int32)


@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("ordered", [False, True])
def test_gptq_is_what_gptqmodel_makes_of_it(bits, layout, ordered):
    """Scales are in half precision, as in checkpoints, and the package multiplies in it: ours is rounded to its numbers."""
    linear = pytest.importorskip("gptqmodel.nn_modules.qlinear.torch").TorchLinear
    raise_zeros = pytest.importorskip("gptqmodel.utils.model").convert_gptq_v1_to_v2_format_module
    g = torch.Generator().manual_seed(bits)
    group = torch.arange(K) // 32
    parts = {
        ".qweight": words(K * bits // 32, N),
        ".qzeros": words(K // 32, N * bits // 32, seed=1),
        ".scales": (torch.rand(K // 32, N, generator=g) + 0.5).half(),
        ".g_idx": (group[torch.randperm(K, generator=g)] if ordered else group).int(),
    }
    module = linear(bits=bits, group_size=32, sym=False, desc_act=ordered, in_features=K, out_features=N)
    for ending, value in parts.items():
        setattr(module, ending[1:], value.clone())
    if layout == "gptq":
        raise_zeros(module, bits, torch.int32)
    theirs = module.eval().dequantize_weight()
    ours = gptq.grouped(parts, {"bits": bits, "checkpoint_format": layout})
    assert theirs.dtype == torch.float16 and torch.equal(ours.half(), theirs.T)
    module.scales = parts[".scales"].float()
    module.clear_weight_cache()
    assert torch.equal(ours, module.dequantize_weight().T)


def test_awq_is_what_gptqmodel_makes_of_it():
    theirs = pytest.importorskip("gptqmodel.quantization.awq.utils.packing_utils").dequantize_gemm
    scales = (torch.rand(K // GROUP, N, generator=torch.Generator().manual_seed(0)) + 0.5).half()
    codes, zeros = words(K, N // 8), words(K // GROUP, N // 8, seed=1)
    ours = awq.grouped({".qweight": codes, ".qzeros": zeros, ".scales": scales}, {"bits": 4, "group_size": GROUP})
    assert torch.equal(ours, theirs(codes, zeros, scales.float(), 4, GROUP).T)
    assert torch.equal(ours.half(), theirs(codes, zeros, scales, 4, GROUP).T)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_nvfp4_differs_from_its_package_by_the_bfloat16_it_unpacks_into(shape):
    """Codes and block scales become bfloat16 there first; the same operations in single precision are ours, bit for bit."""
    base = pytest.importorskip("compressed_tensors.compressors.nvfp4.base")
    helpers = pytest.importorskip("compressed_tensors.compressors.nvfp4.helpers")
    lifecycle = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    how = quantization.QuantizationArgs(
        num_bits=4, type="float", symmetric=True, strategy="tensor_group", group_size=GROUP, dynamic=False
    )
    g = torch.Generator().manual_seed(0)
    parts = {
        ".weight_packed": torch.randint(0, 256, (N, K // 2), dtype=torch.uint8, generator=g),
        ".weight_scale": (torch.rand(N, K // GROUP, generator=g) * 440 + 1).to(torch.float8_e4m3fn),
        ".weight_global_scale": torch.full(shape, 1234.567),
    }
    ours = compressed_tensors.packed(parts, {})
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=how)
    theirs = base.NVFP4PackedCompressor.decompress({name[1:]: value for name, value in parts.items()}, scheme)["weight"]
    assert theirs.dtype == torch.bfloat16 and torch.allclose(theirs.float(), ours, rtol=2**-7, atol=0.0)
    assert not torch.equal(theirs.float(), ours)
    codes = helpers.unpack_fp4_from_uint8(parts[".weight_packed"], N, K, dtype=torch.float32)
    scale, whole = parts[".weight_scale"].float(), parts[".weight_global_scale"]
    assert torch.equal(lifecycle.dequantize(codes, scale, args=how, dtype=torch.float32, global_scale=whole), ours)


@pytest.mark.parametrize(("kind", "kernel"), [("gptq", "gptq_torch"), ("awq", "torch_awq")])
def test_a_model_in_gptqmodel_says_what_its_plain_weights_say(kind, kernel, shoal, tmp_path):
    """Its kernels in plain torch; those it would choose on a processor are compiled first, for minutes.

    The package prints a banner when it is imported: the command's stdout is JSON all the same.
    """
    if not all(map(importlib.util.find_spec, ("gptqmodel", "optimum"))):
        pytest.skip("gptqmodel or optimum is not installed")
    source = write_quantised(tmp_path / "m", kind, n_layers=3)
    tensors = load_file(source / "model.safetensors")
    small = {name: (value * 0.01).half() for name, value in tensors.items() if name.endswith(".scales")}
    save_file(tensors | small, source / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"]["backend"] = kernel
    (source / "config.json").write_text(json.dumps(config))
    with torch.compiler.set_stance("force_eager"):
        code, out, err = shoal("export", "plain", source, "--out", "plain", "--json")
    assert code == 0, err
    # The kernels multiply in half precision: 5e-4 and 6e-4 were found.
    assert json.loads(out)["checked"]["difference_of_spread"] < 2e-3
