"""A cut GGUF file: kept tensors byte for byte, every number that depends on a layer's number right, or a refusal by name."""

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from itertools import combinations

import gguf
import pytest
import torch
from gguf_files import F16, Q4_1, Q8_0, keys_of, tensors_of, write_file

from shoal.engine.gguf_head import ARRAY, BOOL, FLOAT32, INT32, STRING, UINT32, Value
from shoal.export.gguf import file_parts as parts
from shoal.export.gguf.cut_file import cut_gguf, renumbered, size_label
from shoal.export.gguf.layers import ARCHITECTURES, PER_LAYER, WHY_NOT, cut_keys

N = 6
U32, BOOLS = gguf.GGUFValueType.UINT32, gguf.GGUFValueType.BOOL
LIST = gguf.GGUFValueType.ARRAY


def same_layers(before, after, kept):
    """``after`` holds the layers ``kept`` of ``before`` and everything that is no layer, byte for byte."""
    index = {f"blk.{layer}.": f"blk.{j}." for j, layer in enumerate(kept)}
    wanted = {}
    for name, content in before.items():
        prefix = next((p for p in index if name.startswith(p)), None)
        if prefix is not None:
            wanted[index[prefix] + name.removeprefix(prefix)] = content
        elif not name.startswith("blk."):
            wanted[name] = content
    assert after == wanted


@pytest.mark.parametrize("kind", [F16, Q8_0, Q4_1], ids=str)
@pytest.mark.parametrize("kept", [(0, 1, 4, 5), (5,), (0, 2, 4)], ids=str)
def test_kept_tensors_stay_byte_for_byte(kind, kept, tmp_path):
    source = write_file(tmp_path / "m.gguf", kind=kind, alignment=64)
    raw = source.read_bytes()
    done = cut_gguf(source, kept, tmp_path / "out.gguf")
    same_layers(tensors_of(source), tensors_of(done.path), kept)
    assert source.read_bytes() == raw, "the source is not touched"
    before, after = keys_of(source), keys_of(done.path)
    changed = {"llama.block_count": len(kept), "shoal.kept_blocks": list(kept), "general.name": f"Tiny, {len(kept)} layers"}
    changed |= {"general.base_model.count": 1, "general.base_model.0.name": "Tiny"}
    changed |= {"general.base_model.0.organization": "nobody", "general.size_label": after["general.size_label"]}
    assert after == {**before, **changed}
    n_layer = 2 * 8 * 32 + 32
    assert done.n_parameters == (N * n_layer + 192, len(kept) * n_layer + 192)
    assert done.n_bytes == (len(raw), done.path.stat().st_size)


def test_the_blocks_of_a_repeated_layer_go_to_every_place(tmp_path):
    """As a growing repeats layers: each place gets the bytes of its layer."""
    model = parts.open_model(write_file(tmp_path / "a.gguf", n_layers=3))
    order = [0, 1, 2, 1, 2]
    found = {name: stored for name, stored in renumbered(model, 3, order)}
    theirs = {stored.place.name: stored for stored in model.tensors}
    for new, old in enumerate(order):
        assert found[f"blk.{new}.attn_q.weight"] is theirs[f"blk.{old}.attn_q.weight"]
    assert sum(name.startswith("blk.") for name in found) == 3 * len(order)


def test_a_cut_of_a_cut_is_the_cut_of_both(tmp_path):
    source = write_file(tmp_path / "m.gguf")
    once = cut_gguf(source, (0, 1, 3, 5), tmp_path / "once.gguf").path
    twice = cut_gguf(once, (0, 2), tmp_path / "twice.gguf").path
    direct = cut_gguf(source, (0, 3), tmp_path / "direct.gguf").path
    assert tensors_of(twice) == tensors_of(direct)
    assert keys_of(twice)["shoal.kept_blocks"] == keys_of(direct)["shoal.kept_blocks"] == [0, 3]


def engine_kinds(arch, keys, n):
    """Which layers have a window, by llama.cpp's own words: ``il % p < p - 1``, or ``il % p != 0`` where full comes first."""
    stated = keys.get(f"{arch}.attention.sliding_window_pattern")
    if isinstance(stated, list):
        return stated
    rules = ARCHITECTURES[arch]
    period = rules.window_period if stated is None else stated
    return [il % period != 0 if rules.is_full_first else il % period < period - 1 for il in range(n)]


WINDOWED = [name for name, rules in ARCHITECTURES.items() if rules.window_period is not None and rules.by_number is None]


@pytest.mark.parametrize("arch", WINDOWED)
@pytest.mark.parametrize("stated", [None, 3, "list"])
def test_every_kept_layer_has_the_window_it_had(arch, stated):
    n = 8
    keys = {f"{arch}.block_count": Value.of(n, UINT32), f"{arch}.attention.sliding_window": Value.of(16, UINT32)}
    pattern = f"{arch}.attention.sliding_window_pattern"
    if stated == "list":
        keys[pattern] = Value.of_list([i in (1, 2, 6) for i in range(n)], BOOL)
    elif stated:
        keys[pattern] = Value.of(stated, UINT32)
    before = engine_kinds(arch, {name: value.value for name, value in keys.items()}, n)
    n_lists = 0
    for size in range(1, n):
        for kept in combinations(range(n), size):
            after = {name: value.value for name, value in cut_keys(keys, arch, n, kept).items()}
            assert after[f"{arch}.block_count"] == size
            assert engine_kinds(arch, after, size) == [before[layer] for layer in kept], kept
            n_lists += isinstance(after.get(pattern), list)
    assert n_lists > 0
    whole = 3 if stated == 3 else ARCHITECTURES[arch].window_period
    if stated != "list" and whole < n:
        after = cut_keys(keys, arch, n, range(whole, n))
        assert after.get(pattern) == keys.get(pattern), "whole periods need no list, so that older engines read the file"


def test_windows_that_are_not_used_are_not_written():
    keys = {"gemma3.block_count": Value.of(N, UINT32)}
    assert set(cut_keys(keys, "gemma3", N, (0, 2, 5))) == set(keys)


@pytest.mark.parametrize("key", PER_LAYER)
def test_lists_with_one_entry_per_layer_are_filtered(key, tmp_path):
    keys = [(key, [3, 1, 4, 1, 5, 9], LIST, U32), ("rope.dimension_sections", [1] * N, LIST, U32)]
    source = write_file(tmp_path / "m.gguf", keys=keys)
    after = keys_of(cut_gguf(source, (0, 2, 5), tmp_path / "out.gguf").path)
    assert after[f"llama.{key}"] == [3, 4, 9] and after["llama.rope.dimension_sections"] == [1] * N


def test_leading_layers_are_counted_again():
    keys = {"dots1.block_count": Value.of(N, UINT32), "dots1.leading_dense_block_count": Value.of(3, UINT32)}
    for kept, lead in (((0, 1, 2, 5), 3), ((1, 3, 4), 1), ((3, 4), 0)):
        assert cut_keys(keys, "dots1", N, kept)["dots1.leading_dense_block_count"].value == lead


def test_a_scale_that_follows_from_the_number_of_layers_is_written_down():
    keys = {"minicpm.block_count": Value.of(N, UINT32)}
    assert cut_keys(keys, "minicpm", N, (0, 1))["minicpm.residual_scale"].value == pytest.approx(1.4 / N**0.5)
    stated = {**keys, "minicpm.residual_scale": Value.of(0.5, FLOAT32)}
    assert cut_keys(stated, "minicpm", N, (0, 1))["minicpm.residual_scale"].value == 0.5


def test_experts_in_global_lists_are_filtered():
    keys = {"apertus.block_count": Value.of(N, UINT32), "xielu.beta": Value.of_list([0.5] * 5 + [1.5], FLOAT32)}
    assert cut_keys(keys, "apertus", N, (0, 5))["xielu.beta"].value == [0.5, 1.5]


REFUSED = [
    ("gemma3", 62, range(40), {}, "62 layers as another one, so 62 layers cannot become 40"),
    ("gemma2", 50, range(46), {}, "46 layers as another one"),
    ("deepseek2", 30, range(27), {}, "'deepseek2'.*27 layers"),
    ("command-r", 64, range(40), {}, "64 layers and more"),
    ("llama", 6, (0, 1), {"nextn_predict_layers": 1}, "nextn_predict_layers=1"),
    ("gemma2", 6, (0, 1), {"attention.shared_kv_layers": 2}, "shared_kv_layers=2"),
    ("dots1", 6, (0, 1), {"leading_dense_block_count": -1}, "leading_dense_block_count is -1, a count is needed"),
    ("smollm3", 8, (0, 1, 2, 4, 5, 6, 7), {}, "as layer 3 layer 4 would be another.*whole periods"),
    ("llama4", 8, (0, 1, 2, 4, 5, 6, 7), {"interleave_moe_layer_step": 1}, "whole periods"),
    *((arch, 6, (0, 1), {}, why) for arch, why in WHY_NOT.items()),
    ("new-thing", 6, (0, 1), {}, "'new-thing' cannot be cut as a GGUF file.*not known here"),
]


@pytest.mark.parametrize(("arch", "n", "kept", "fields", "message"), REFUSED, ids=lambda one: str(one)[:20])
def test_what_the_engine_would_misread_is_refused_by_name(arch, n, kept, fields, message):
    keys = {f"{arch}.block_count": Value.of(n, UINT32)}
    keys |= {f"{arch}.{name}": Value.of(value, INT32) for name, value in fields.items()}
    with pytest.raises(ValueError, match=message):
        cut_keys(keys, arch, n, list(kept))


@pytest.mark.parametrize("arch", ["smollm3", "llama4", "smallthinker", "afmoe", "ernie4_5-moe"])
def test_whole_periods_can_always_go(arch):
    keys = {f"{arch}.block_count": Value.of(12, UINT32), f"{arch}.attention.sliding_window": Value.of(64, UINT32)}
    keys[f"{arch}.interleave_moe_layer_step"] = Value.of(2, UINT32)
    assert cut_keys(keys, arch, 12, [0, 1, 2, 3, 8, 9, 10, 11])[f"{arch}.block_count"].value == 8


@pytest.mark.parametrize("key", ["attention.new_list", "experts_by_layer"])
def test_an_unknown_list_is_refused(key, tmp_path):
    source = write_file(tmp_path / "m.gguf", keys=[(key, [1, 2], LIST, U32)])
    with pytest.raises(ValueError, match=f"llama.{key} is a list of 2 entries"):
        cut_gguf(source, (0, 1), tmp_path / "out.gguf")


def test_a_list_of_another_length_is_refused(tmp_path):
    source = write_file(tmp_path / "m.gguf", keys=[("attention.head_count", [1, 2], LIST, U32)])
    with pytest.raises(ValueError, match="head_count has 2 entries for 6 layers"):
        cut_gguf(source, (0, 1), tmp_path / "out.gguf")


def test_uneven_layers_keep_attention_in_front(tmp_path):
    heads = ("attention.head_count", [4, 0, 4, 4, 0, 4], LIST, U32)
    source = write_file(tmp_path / "m.gguf", arch="deci", keys=[heads])
    assert keys_of(cut_gguf(source, (0, 1, 3), tmp_path / "a.gguf").path)["deci.attention.head_count"] == [4, 0, 4]
    with pytest.raises(ValueError, match="layer 1 has no attention"):
        cut_gguf(source, (1, 2), tmp_path / "b.gguf")


@pytest.mark.parametrize("blocks", [5, 7])
def test_blocks_that_are_not_those_stated_are_refused(blocks, tmp_path):
    source = write_file(tmp_path / "m.gguf", n_layers=blocks)
    raw = source.read_bytes()
    wrong = raw.replace(b"llama.block_count\x04\0\0\0" + bytes([blocks]), b"llama.block_count\x04\0\0\0\x06")
    assert wrong != raw
    source.write_bytes(wrong)
    with pytest.raises(ValueError, match="block 5 of 6 has no tensors|block 6 of 6 is beyond the last one"):
        cut_gguf(source, (0, 1), tmp_path / "out.gguf")


def test_nothing_is_overwritten_and_nothing_is_left_half_written(tmp_path, monkeypatch):
    source, out = write_file(tmp_path / "m.gguf"), tmp_path / "out.gguf"
    with pytest.raises(ValueError, match="is the source"):
        cut_gguf(source, (0, 1), source, overwrite=True)
    out.write_text("mine")
    with pytest.raises(ValueError, match="exists; give another name, or --overwrite"):
        cut_gguf(source, (0, 1), out)
    monkeypatch.setattr(parts.Stored, "chunks", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cut_gguf(source, (0, 1), out, overwrite=True)
    assert out.read_text() == "mine" and sorted(one.name for one in tmp_path.iterdir()) == ["m.gguf", "out.gguf"]
    monkeypatch.undo()
    assert len(tensors_of(cut_gguf(source, (0, 1), out, overwrite=True).path)) == 8


def shorter(source):
    os.truncate(source, 4000)


def other_bytes(source):
    raw = bytearray(source.read_bytes())
    raw[-1] ^= 1
    source.write_bytes(raw)
    os.utime(source, ns=(0, 1))  # A clock may tick too slowly to tell the two writings apart.


def another_file(source):
    os.replace(shutil.copy(source, source.with_name("new")), source)


def gone(source):
    source.unlink()


@pytest.mark.parametrize("when", ["before the first tensor", "between two pieces"])
@pytest.mark.parametrize("change", [shorter, other_bytes, another_file, gone])
def test_a_file_that_changes_while_it_is_read_is_seen(change, when, tmp_path, monkeypatch):
    """One line, and no file: half of the one and half of the other would load and say nonsense."""
    (tmp_path / "in").mkdir()
    source, out = write_file(tmp_path / "in" / "m.gguf"), tmp_path / "out" / "s.gguf"
    chunks, done = parts.Stored.chunks, []

    def changing(self):
        if when.startswith("before") and not done:
            done.append(change(source))
        for piece in chunks(self):
            yield piece
            if not done:
                done.append(change(source))

    monkeypatch.setattr(parts.Stored, "chunks", changing)
    with pytest.raises(
        ValueError, match="m.gguf (was changed while it was read|cannot be read any more).*start again"
    ) as caught:
        cut_gguf(source, (0, 1), out)
    assert "\n" not in str(caught.value) and list(out.parent.iterdir()) == []


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    source = write_file(tmp_path / "m.gguf", n_layers=2)
    big = source.with_name("big.gguf")
    name = "blk.0.attn_q.weight"
    model = parts.open_model(source)
    from shoal.export.gguf.write_file import Outgoing, write_gguf

    outgoing = []
    for one in model.tensors:
        shape, n_bytes, chunks = one.place.shape, one.place.n_bytes, one.chunks
        if one.place.name == name:
            shape, n_bytes, chunks = (32, 2**20), 2**20 * 34, lambda: (bytes(2**20) for _ in range(34))
        outgoing.append(Outgoing(one.place.name, shape, one.place.kind, n_bytes, chunks))
    write_gguf(big, model.keys, outgoing)
    monkeypatch.setattr(parts, "CHUNK", 2**20)
    tracemalloc.start()
    cut_gguf(big, (0,), tmp_path / "out.gguf")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert big.stat().st_size > 34 * 2**20 and peak < 4 * 2**20


def test_the_command_cuts_without_torch(tmp_path):
    source = write_file(tmp_path / "m.gguf")
    code = (
        "import sys; sys.argv = ['shoal', 'cut', 'm.gguf', '--layers', '1..2,4', '--out', 'out.gguf', '--json']\n"
        "import atexit; atexit.register(lambda: print(sorted({'torch', 'transformers'} & set(sys.modules)), file=sys.stderr))\n"
        "from shoal.cli import main; main()"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 0 and told.stderr.splitlines()[-1] == "[]"
    result = json.loads(told.stdout)
    assert result["kept"] == [0, 3, 5] and result["layers"] == [6, 3] and result["path"] == "out.gguf"
    same_layers(tensors_of(source), tensors_of(tmp_path / "out.gguf"), (0, 3, 5))


def plan(**fields):
    size = {"layers": 6, "parameters": 1}
    stated = {"source": "m", "source_hash": "", "teacher": "m", "n_layers": 6, "before": size, "after": size, **fields}
    return json.dumps(stated)


def test_layers_to_keep_are_the_other_way_to_say_it(shoal, tmp_path):
    write_file(tmp_path / "m.gguf")
    assert shoal("cut", "m.gguf", "--layers", "1..2,4", "--out", "gone.gguf")[0] == 0
    assert shoal("cut", "m.gguf", "--keep", "0,3,-1", "--out", "kept.gguf")[0] == 0
    assert (tmp_path / "gone.gguf").read_bytes() == (tmp_path / "kept.gguf").read_bytes()


DROP = {"edit": "drop", "indices": [1, 4]}


def test_a_plan_says_what_to_cut(shoal, tmp_path):
    write_file(tmp_path / "m.gguf")
    (tmp_path / "plan.json").write_text(plan(edits=[DROP]))
    code, out, err = shoal("cut", "m.gguf", "--plan", "plan.json", "--out", "out.gguf")
    assert code == 0 and "layers 1, 4 (0-based, inclusive), keeps 4" in out
    assert "shoal eval out.gguf --teacher m.gguf" in out.split("What next:")[1]
    assert keys_of(tmp_path / "out.gguf")["shoal.kept_blocks"] == [0, 2, 3, 5]


WRONG = {
    "neither": ((), "either --layers 20..24, --keep 0..19 or --plan"),
    "a share": (("--drop", "2"), "No such option: --drop (compress, plan, run, curve have it"),
    "neither, and how to choose": ((), "`shoal plan m.gguf --drop 25% --out DIR` measures which layers"),
    "both": (("--layers", "1", "--plan", "plan.json"), "either --layers 20..24, --keep 0..19 or --plan"),
    "no number": (("--layers", "one"), "'one' is no layer and no range"),
    "backwards": (("--layers", "4..2"), "4..2 runs backwards"),
    "beyond": (("--layers", "2,6"), "6 is not within 0..5"),
    "both lists": (("--layers", "1", "--keep", "2"), "either --layers 20..24, --keep 0..19 or --plan"),
    "sublayers": (("--layers", "attn:1"), "cut by whole layers"),
    "all": (("--layers", "0..5"), "removes all 6 layers"),
    "no plan": (("--plan", "nowhere.json"), "no plan at nowhere.json"),
    "another depth": (("--plan", "deep.json"), "made for 7 layers, m.gguf has 6"),
    "values": (("--plan", "refit.json"), "shoal export gguf STUDENT --like"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests_are_one_line(name, shoal, tmp_path):
    options, message = WRONG[name]
    write_file(tmp_path / "m.gguf")
    (tmp_path / "plan.json").write_text(plan(edits=[DROP]))
    (tmp_path / "deep.json").write_text(plan(edits=[DROP], n_layers=7))
    (tmp_path / "refit.json").write_text(plan(edits=[DROP, {"edit": "refit", "layer": 0, "parameters": ["x"]}]))
    code, out, err = shoal("cut", "m.gguf", "--out", "out.gguf", *options)
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out.gguf").exists()


def test_windows_layer_by_layer_are_said(shoal, tmp_path):
    write_file(tmp_path / "m.gguf", arch="gemma3", keys=[("attention.sliding_window", 16, U32, None)])
    code, out, err = shoal("cut", "m.gguf", "--layers", "1", "--out", "out.gguf")
    assert code == 0 and "from build b11434" in out
    assert keys_of(tmp_path / "out.gguf")["gemma3.attention.sliding_window_pattern"] == [True] * 4 + [False]


@pytest.mark.parametrize("kind", ["Q8_0", "F32"])
def test_transformers_reads_a_cut_file_as_the_model_without_the_layers(kind, tmp_path):
    from gguf_world import tiny_llama, write_gguf
    from transformers import AutoModelForCausalLM, GgufConfig

    def opened(name):
        packed = GgufConfig(dequantize=True)
        return AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file=name, dtype=torch.float32, quantization_config=packed
        ).eval()

    write_gguf(tmp_path / "m.gguf", tiny_llama(5), kind=kind)
    cut_gguf(tmp_path / "m.gguf", (0, 2, 4), tmp_path / "out.gguf")
    whole, student = opened("m.gguf"), opened("out.gguf")
    for layer in (3, 1):
        del whole.model.layers[layer]
    for j, layer in enumerate(whole.model.layers):
        layer.self_attn.layer_idx = j
    whole.config.num_hidden_layers = 3
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        difference = (whole(input_ids=ids).logits - student(input_ids=ids).logits).abs().max()
    assert student.config.num_hidden_layers == 3 and float(difference) == 0.0


@pytest.mark.parametrize(
    ("n", "label"), [(109734336, "110M"), (1_240_000_000, "1.2B"), (70_600_000_000, "71B"), (5400, "5K"), (4_200_000, "4.2M")]
)
def test_sizes_are_labelled_as_converters_do(n, label):
    assert size_label(n) == label


def test_a_label_of_experts_is_dropped_rather_than_wrong(tmp_path):
    source = write_file(tmp_path / "m.gguf", keys=[("expert_count", 8, U32, None)])
    assert "general.size_label" not in keys_of(cut_gguf(source, (0, 1), tmp_path / "out.gguf").path)


def test_an_odd_record_of_an_earlier_cut_is_replaced(tmp_path):
    for i, value in enumerate((Value.of_list(["a"] * N, STRING), Value.of_list([1], INT32))):
        field = [".shoal.kept_blocks", value.value, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType(value.element_kind)]
        source = write_file(tmp_path / f"m{i}.gguf", keys=[tuple(field)])
        assert value.kind == ARRAY
        assert keys_of(cut_gguf(source, (0, 4), tmp_path / f"out{i}.gguf").path)["shoal.kept_blocks"] == [0, 4]
