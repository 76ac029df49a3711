"""Quantised checkpoints out of their blocks: every format against its formula, the model against itself, then repaired."""

import json
import random
from dataclasses import replace

import pytest
import torch
from quantised_world import BLOCK, FP8, KINDS, N_WORDS, SIZES, repack, to_fp8_blocks, write_quantised
from safetensors.torch import load_file, save_file
from test_unread_options import one_line
from text_world import word_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig
from world import write_text

from shoal.checkpoint import unpack as unpacking
from shoal.engine.packed import awq, compressed_tensors, gptq, mxfp4
from shoal.engine.packed.codes import FP4, spread
from shoal.engine.packed.packing import PackedForm
from shoal.engine.packed.table import PACKINGS
from shoal.export.exporter import Options
from shoal.export.table import export

bitsandbytes = pytest.importorskip("bitsandbytes")
N, K = 16, 64


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("packed"), {}

    def source(kind):
        if kind not in made:
            made[kind] = write_quantised(folder / kind, kind, n_layers=3)
        return made[kind]

    return source


def packed_by_hand(codes, bits, order=None):
    """Rows of integers into 32-bit words, lowest bits first; ``order``: which of its numbers each place of a word holds."""
    n_places = 32 // bits
    order = list(range(n_places)) if order is None else order
    rows = []
    for row in codes.tolist():
        words = []
        for start in range(0, len(row), n_places):
            word = sum(row[start + which] << (bits * place) for place, which in enumerate(order) if start + which < len(row))
            words.append(word - 2**32 if word >= 2**31 else word)
        rows.append(words)
    return torch.tensor(rows, dtype=torch.int32)


@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("ordered", [False, True])
def test_gptq_is_code_minus_zero_times_scale_of_the_inputs_group(layout, bits, ordered):
    """Planted integers; the first layout stores words of zeros lowered by one in each field, and 0 borrows from the next.

    With an order of inputs, groups are anywhere.
    """
    g = torch.Generator().manual_seed(bits)
    n_groups = 4
    codes, zeros = (torch.randint(0, 2**bits, (rows, N), generator=g) for rows in (K, n_groups))
    scales = torch.rand(n_groups, N, generator=g)
    group = torch.arange(K) // (K // n_groups)
    group = group[torch.randperm(K, generator=g)] if ordered else group
    lowered = sum(1 << start for start in range(0, 32, bits)) if layout == "gptq" else 0
    words = [[(word - lowered + 2**31) % 2**32 - 2**31 for word in row] for row in packed_by_hand(zeros, bits).tolist()]
    parts = {
        ".qweight": packed_by_hand(codes.T, bits).T.contiguous(),
        ".qzeros": torch.tensor(words, dtype=torch.int32),
        ".scales": scales,
        ".g_idx": group.int(),
    }
    expected = ((codes - zeros[group]) * scales[group]).T
    stated = {"bits": bits, "checkpoint_format": layout}
    assert torch.equal(gptq.grouped(parts, stated), expected)
    if not ordered:
        del parts[".g_idx"]
        assert torch.equal(gptq.grouped(parts, stated), expected)


def test_awq_has_its_own_order_of_outputs():
    g = torch.Generator().manual_seed(0)
    codes, zeros = (torch.randint(0, 16, (rows, N), generator=g) for rows in (K, 2))
    scales = torch.rand(2, N, generator=g)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    parts = {".qweight": packed_by_hand(codes, 4, order), ".qzeros": packed_by_hand(zeros, 4, order), ".scales": scales}
    expected = ((codes - zeros.repeat_interleave(K // 2, 0)) * scales.repeat_interleave(K // 2, 0)).T
    assert torch.equal(awq.grouped(parts, {}), expected)


@pytest.mark.parametrize("n_columns", [K, K - 3])
@pytest.mark.parametrize("is_symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_compressed_integers_lie_around_the_middle_code(bits, is_symmetric, n_columns):
    g = torch.Generator().manual_seed(1)
    codes, scale = torch.randint(0, 2**bits, (N, n_columns), generator=g), torch.rand(N, 1, generator=g)
    zero = torch.randint(0, 2**bits, (N, 1), generator=g)
    parts = {
        ".weight_packed": packed_by_hand(codes, bits),
        ".weight_scale": scale,
        ".weight_shape": torch.tensor([N, n_columns]),
    }
    if not is_symmetric:
        parts[".weight_zero_point"] = packed_by_hand(zero.T, bits).T.contiguous()
    expected = (codes - (2 ** (bits - 1) if is_symmetric else zero)) * scale
    assert torch.equal(compressed_tensors.packed(parts, {}), expected)


def test_four_bit_floats_of_experts_number_by_number():
    g = torch.Generator().manual_seed(2)
    blocks = torch.randint(0, 256, (2, 3, 2, 16), dtype=torch.uint8, generator=g)
    scales = torch.randint(0, 254, (2, 3, 2), dtype=torch.uint8, generator=g)
    found = mxfp4.experts({"_blocks": blocks, "_scales": scales}, {})
    assert found.shape == (2, 64, 3)
    for _ in range(200):
        expert, output, i = random.randrange(2), random.randrange(3), random.randrange(64)
        byte = int(blocks[expert, output, i // 32, i % 32 // 2])
        code = byte >> 4 if i % 2 else byte & 15
        value = FP4[code & 7] * (-1.0 if code & 8 else 1.0) * 2.0 ** (int(scales[expert, output, i // 32]) - 127)
        assert float(found[expert, i, output]) == value


def test_scales_reach_ragged_edges():
    found = spread(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), (5, 7), [(4, 4)])
    assert found.shape == (5, 7) and found[3, 3] == 1 and found[3, 4] == 2 and found[4, 0] == 3 and found[4, 6] == 4
    with pytest.raises(ValueError, match=r"scales of shape \(2, 2\) for a matrix of 5 x 7"):
        spread(torch.ones(2, 2), (5, 7))


@pytest.mark.parametrize("kind", ["nf4", "fp4", "nested", "int8"])
def test_bitsandbytes_says_the_same_numbers(kind, sources, tmp_path):
    """Against the package's own way back, bit for bit."""
    how = {"fp4": dict(bnb_4bit_quant_type="fp4"), "nested": dict(bnb_4bit_use_double_quant=True, bnb_4bit_quant_type="nf4")}
    if kind in how:
        from quantised_world import by_bitsandbytes

        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, intermediate_size=128, num_hidden_layers=2)).save_pretrained(
            tmp_path / "m"
        )
        word_tokenizer(N_WORDS).save_pretrained(tmp_path / "m")
        by_bitsandbytes(tmp_path / "m", load_in_4bit=True, **how[kind])
    source = tmp_path / "m" if kind in how else sources(kind)
    export("plain", source, tmp_path / "out", Options(kind="f32"))
    ours, n = load_file(tmp_path / "out" / "model.safetensors"), 0
    theirs_of = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32
    )  # unrun: the first forward repacks 4-bit weights
    for name, module in theirs_of.named_modules():
        weight = getattr(module, "weight", None)
        if type(weight).__name__ == "Params4bit":
            theirs = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        elif type(weight).__name__ == "Int8Params":
            theirs = bitsandbytes.functional.int8_vectorwise_dequant(weight.data, weight.SCB)
        else:
            continue
        n += 1
        # The package rounds once more where it multiplies by 1/127 in place of dividing.
        assert torch.allclose(ours[f"{name}.weight"], theirs.float(), rtol=3e-7 if kind == "int8" else 0.0, atol=0.0), name
    assert n >= 14


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_writes_a_plain_checkpoint(kind, sources, shoal, tmp_path):
    code, out, err = shoal("export", "plain", sources(kind), "--out", "out", "--json")
    assert code == 0, err
    checked = json.loads(out)["checked"]
    before, after = (load_file(folder / "model.safetensors") for folder in (sources(kind), tmp_path / "out"))
    skeleton = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert after.keys() == skeleton.keys() and all(after[name].shape == skeleton[name].shape for name in after)
    kept = [name for name in before if "norm" in name or "embed" in name or "lm_head" in name]
    assert len(kept) > 5 and all(torch.equal(before[name], after[name]) for name in kept)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config and config["num_hidden_layers"] == 3
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (sources(kind) / "tokenizer.json").read_bytes()
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in (tmp_path / "out").iterdir()), "a server is another user"
    if "difference_of_spread" in checked:
        assert checked["difference_of_spread"] <= {"nf4": 0.05, "int8": 0.1}.get(kind, 0.0)
    else:
        assert kind in ("gptq", "awq", "compressed-tensors") and "pip install" in checked["compared"]


def test_what_was_unpacked_is_repaired(sources, shoal, tmp_path):
    """The way a refusal names, from the quantised checkpoint to a repaired student of it."""
    text = ("--text", write_text(tmp_path / "t.jsonl"), "--length", 16, "--fit-tokens", 400, "--no-speed")
    code, _, err = shoal("compress", sources("nf4"), "--layers", 1, "--repair", "refit", "--out", "no", *text)
    one_line(code, err, f"shoal export plain {sources('nf4')} --out DIR")
    assert shoal("export", "plain", sources("nf4"), "--out", "plain")[0] == 0
    code, _, err = shoal("compress", "plain", "--layers", 1, "--repair", "refit", "--out", "run", *text)
    assert code == 0, err
    assert "repair: refit" in (tmp_path / "run" / "recipe.yaml").read_text()
    assert (tmp_path / "run" / "fit.json").exists(), "the plain model is fitted as any other; what a random one gains is open"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").config.num_hidden_layers == 2


def test_numbers_read_in_the_wrong_order_are_noticed(sources, tmp_path, monkeypatch):
    whole = PACKINGS["bitsandbytes"]
    first = whole.forms[0]

    def mirrored(parts, stated):
        return first.unpack(parts, stated).flatten().view(-1, 2).flip(1).reshape(first.unpack(parts, stated).shape)

    wrong = replace(whole, forms=(replace(first, unpack=mirrored), *whole.forms[1:]))
    monkeypatch.setitem(PACKINGS, "bitsandbytes", wrong)
    with pytest.raises(ValueError, match="differ from the quantised model's by"):
        export("plain", sources("nf4"), tmp_path / "out", Options())
    assert not (tmp_path / "out").exists()


def test_parts_of_a_weight_may_lie_in_several_shards(sources, tmp_path, monkeypatch):
    """The source is split so that codes and scales are apart, and the result is written in small shards."""
    export("plain", sources("fp8"), tmp_path / "whole", Options())
    tensors = load_file(sources("fp8") / "model.safetensors")
    split = tmp_path / "split"
    split.mkdir()
    for file in sources("fp8").iterdir():
        if file.suffix != ".safetensors":
            (split / file.name).write_bytes(file.read_bytes())
    halves = [{n: v for n, v in tensors.items() if n.endswith("scale_inv") == is_scale} for is_scale in (False, True)]
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for half, file in zip(halves, files, strict=True):
        save_file(half, split / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {n: file for half, file in zip(halves, files, strict=True) for n in half}}
    (split / "model.safetensors.index.json").write_text(json.dumps(index))
    monkeypatch.setattr(unpacking, "SHARD_BYTES", 50_000)
    export("plain", split, tmp_path / "out", Options())
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    first, second = (AutoModelForCausalLM.from_pretrained(tmp_path / one).state_dict() for one in ("whole", "out"))
    assert first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_one_scale_for_all_and_powers_of_two_as_scales(tmp_path):
    """Two variants of fp8: a scale per weight, and block scales as exponents."""

    def to_exponents(stem, weight_NK):
        parts = to_fp8_blocks(stem, weight_NK)
        exponent = parts[f"{stem}weight_scale_inv"].log2().ceil()
        blocks = weight_NK.reshape(weight_NK.shape[0] // BLOCK, BLOCK, -1, BLOCK) / exponent.exp2()[:, None, :, None]
        raw = (exponent + 127).to(torch.uint8)
        return {
            f"{stem}weight": blocks.reshape(weight_NK.shape).to(torch.float8_e4m3fn),
            f"{stem}weight_scale_inv": raw.view(torch.float8_e8m0fnu),
        }

    def to_one_scale(stem, weight_NK):
        scale = weight_NK.abs().max() / 448.0
        return {
            f"{stem}weight": (weight_NK / scale).to(torch.float8_e4m3fn),
            f"{stem}weight_scale_inv": scale,
            f"{stem}activation_scale": torch.ones(()),
        }

    for name, pack, stated in (
        ("exponents", to_exponents, FP8),
        ("one", to_one_scale, {**FP8, "weight_block_size": None, "activation_scheme": "static"}),
    ):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, intermediate_size=128, num_hidden_layers=2))
        model.save_pretrained(tmp_path / name)
        repack(tmp_path / name, pack, stated)
        unpacking.unpack(tmp_path / name, tmp_path / f"{name}-plain")
        found = load_file(tmp_path / f"{name}-plain" / "model.safetensors")
        assert found.keys() == model.state_dict().keys()
        for key, value in model.state_dict().items():
            # Three bits of mantissa: a number is off by a sixteenth at most, or by half of the smallest step.
            assert torch.allclose(found[key], value, rtol=1 / 16, atol=float(value.abs().max()) / 448 / 2**9 + 1e-9), key


def edited(source, folder, *, config=None, tensors=None):
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    if config is not None:
        content = json.loads((folder / "config.json").read_text())
        config(content)
        (folder / "config.json").write_text(json.dumps(content))
    if tensors is not None:
        held = load_file(folder / "model.safetensors")
        tensors(held)
        save_file(held, folder / "model.safetensors", {"format": "pt"})
    return folder


UP = "model.layers.1.mlp.up_proj."
REFUSED = {
    "not quantised": ("fp8", lambda c: c.pop("quantization_config"), None, "it is not quantised"),
    "another method": (
        "fp8", lambda c: c.update(quantization_config={"quant_method": "hqq"}), None,
        "blocks (hqq) are not known here, only those of bitsandbytes, fp8, mxfp4, compressed-tensors, gptq, awq; start from",
    ),
    "a layout for one kernel": (
        "gptq", lambda c: c["quantization_config"].update(checkpoint_format="marlin"), None, "'marlin' is ordered for one",
    ),
    "three bits": ("gptq", lambda c: c["quantization_config"].update(bits=3), None, "bits=3, known: 2, 4, 8"),
    "another version": ("awq", lambda c: c["quantization_config"].update(version="gemv"), None, "'gemv', known: gemm"),
    "codes without scales": (
        "fp8", None, lambda t: t.pop(f"{UP}weight_scale_inv"), "stored in a way of fp8 that is not known here",
    ),
    "scales of another matrix": (
        "fp8", None, lambda t: t.update({f"{UP}weight_scale_inv": torch.ones(3, 5)}), f"{UP}weight cannot be taken out",
    ),
    "groups beyond the last": (
        "gptq", None, lambda t: t.update({f"{UP}g_idx": torch.full((64,), 9, dtype=torch.int32)}), "cannot be taken out",
    ),
    "a state that is no JSON": (
        "nf4", None, lambda t: t.update({f"{UP}weight.quant_state.bitsandbytes__nf4": torch.ones(9, dtype=torch.uint8)}),
        "cannot be taken out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_unpacked_is_one_line(name, sources, shoal, tmp_path):
    kind, config, tensors, said = REFUSED[name]
    source = edited(sources(kind), tmp_path / "m", config=config, tensors=tensors)
    code, _, err = shoal("export", "plain", source, "--out", "out")
    one_line(code, err, said)
    assert not (tmp_path / "out").exists()


def test_a_type_that_no_weight_has_and_a_model_that_is_not_there(sources, shoal):
    code, _, err = shoal("export", "plain", sources("fp8"), "--out", "out", "--type", "q8_0")
    one_line(code, err, "'q8_0' is no type of plain weights, known: f32, f16, bf16")
    code, _, err = shoal("export", "plain", "nowhere", "--out", "out")
    one_line(code, err, "nowhere is no checkpoint folder")


def test_a_model_of_the_hub_is_fetched(sources, shoal, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("shoal.export.exporter.fetched", lambda name, **options: asked.append(name) or sources("fp8"))
    assert shoal("export", "plain", "org/name", "--out", "out")[0] == 0
    assert asked == ["org/name"] and (tmp_path / "out" / "model.safetensors").exists()


def test_every_method_has_forms_that_tell_themselves_apart():
    for name, packing in PACKINGS.items():
        assert packing.method == name and packing.forms
        assert all(isinstance(form, PackedForm) and form.needs for form in packing.forms)


def test_the_type_that_is_asked_for_is_written(sources, tmp_path):
    export("plain", sources("fp8"), tmp_path / "out", Options(kind="f16"))
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found[f"{UP}weight"].dtype == torch.float16
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "float16"
