"""Every format refuses in words, writes what its check accepts, and reads back as the student."""

import json
import shutil

import gguf
import numpy as np
import pytest
import torch
import yaml
from families import tiny_config, tiny_model
from gguf_files import keys_of, tensors_of
from gguf_world import stored, tiny_llama, write_gguf
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

from shoal.checkpoint.rewrite import rewrite
from shoal.edits.drop import Drop
from shoal.edits.plan import Plan
from shoal.edits.refit import Refit
from shoal.engine.source import fingerprint
from shoal.export.exporter import Options
from shoal.export.gguf.blocks import KINDS, decoded, encoded, kind_number
from shoal.export.gguf.convert import ARCHITECTURE_OF, why_not
from shoal.export.gguf.file_parts import open_model
from shoal.export.gguf.write_file import Outgoing
from shoal.export.gguf.write_file import write_gguf as write_file
from shoal.export.mergekit import ranges
from shoal.export.table import EXPORTERS, export
from shoal.words.structure import Size

N = 6
IDS = torch.arange(40).remainder(61).view(2, 20)


def plan_of(source, *edits, n_layers=N):
    size = Size(layers=n_layers, parameters=0)
    hashed = fingerprint(source)
    return Plan(
        source=str(source), source_hash=hashed, teacher="m", n_layers=n_layers, edits=edits, before=size, after=size
    )  # fmt: skip


def run_folder(source, folder, *edits, values=None, n_layers=N):
    """A run's folder with a plan and the student's checkpoint."""
    folder.mkdir()
    plan = plan_of(source, *edits, n_layers=n_layers)
    rewrite(source, plan, folder / "model", values=values)
    plan.save(folder / "plan.json")
    return folder


def logits(folder, **options):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits


def from_file(path, **options):
    return logits(path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), **options)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A plain Llama of six layers with rows of whole blocks."""
    folder = tmp_path_factory.mktemp("llama") / "teacher"
    tiny_llama(N).save_pretrained(folder)
    return folder


@pytest.fixture
def cut_llama(llama, tmp_path):
    return run_folder(llama, tmp_path / "run", Drop(indices=(1, 4)))


PLAIN = {
    "llama": {},
    "mistral": dict(sliding_window=None),
    "qwen2": dict(use_sliding_window=False, layer_types=["full_attention"] * N, sliding_window=None),
    "qwen3": {},
    "gemma3_text": {},
}


def plain_model(family, folder):
    config = tiny_config(family)
    for name, value in PLAIN[family].items():
        setattr(config, name, value)
    model = AutoModelForCausalLM.from_config(config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0 if parameter.ndim > 1 else 1.0, 0.1)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", sorted(ARCHITECTURE_OF))
def test_transformers_reads_a_written_file_as_the_student(family, tmp_path):
    plain_model(family, tmp_path / "m")
    done = export("gguf", tmp_path / "m", tmp_path / "m.gguf", Options(kind="f32"))
    # transformers reads no head size of Qwen3 and no window frequencies of Gemma 3 from a file, so the config is given there.
    given = {"config": AutoConfig.from_pretrained(tmp_path / "m")} if family in ("qwen3", "gemma3_text") else {}
    assert float((from_file(done.path, **given) - logits(tmp_path / "m")).abs().max()) == 0.0
    assert done.checked["layers"] == N and any("no tokenizer" in note for note in done.notes)


def test_a_written_llama_has_the_tensors_of_the_formats_rules(llama, tmp_path):
    """Against a writer of its own (tests/gguf_world.py)."""
    export("gguf", llama, tmp_path / "m.gguf", Options(kind="f32"))
    wanted = {name: value.astype(np.float32).tobytes() for name, value in stored(tiny_llama(N)).items()}
    assert {name: content[2] for name, content in tensors_of(tmp_path / "m.gguf").items()} == wanted


def test_irregular_windows_are_listed(tmp_path):
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention", "full_attention", "full_attention"]
    PLAIN_GEMMA = dict(PLAIN["gemma3_text"], layer_types=kinds)
    config = tiny_config("gemma3_text")
    for name, value in PLAIN_GEMMA.items():
        setattr(config, name, value)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    done = export("gguf", tmp_path / "m", tmp_path / "m.gguf", Options())
    assert keys_of(done.path)["gemma3.attention.sliding_window_pattern"] == [one == kinds[0] for one in kinds]
    assert any("b11434" in note for note in done.notes)


@pytest.mark.parametrize("kind", KINDS)
def test_values_go_through_a_format_and_back(kind):
    values = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    from shoal.engine.gguf_head import Place

    raw = encoded(values, kind)
    back = decoded(raw, Place("t", (64, 4), kind_number(kind), 0, len(raw)))
    limit = {"f32": 0.0, "f16": 1e-3, "bf16": 1e-2, "q8_0": 0.02}.get(kind, 0.3)
    assert back.shape == values.shape and np.abs(back - values).max() <= limit


REFIT = ("self_attn.q_proj.weight", "mlp.down_proj.weight")


def repaired(source, folder):
    state = AutoModelForCausalLM.from_pretrained(source).model.layers
    values = {f"refit.3.{name}": state[3].get_parameter(name).detach() * 1.25 for name in REFIT}
    values["refit.5.input_layernorm.weight"] = state[5].input_layernorm.weight.detach() + 0.25
    edits = (Drop(indices=(1, 4)), Refit(layer=3, parameters=REFIT), Refit(layer=5, parameters=("input_layernorm.weight",)))
    return run_folder(source, folder, *edits, values=values)


NEW = {"blk.2.attn_q.weight", "blk.2.ffn_down.weight", "blk.3.attn_norm.weight"}


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
@pytest.mark.parametrize("knows_source", [True, False])
def test_a_graft_keeps_the_bytes_of_what_was_left_alone(kind, knows_source, llama, tmp_path):
    run = repaired(llama, tmp_path / "run")
    if not knows_source:
        gone = Plan.load(run / "plan.json").model_copy(update={"source": "/nowhere"})
        gone.save(run / "plan.json")
    teacher = export("gguf", llama, tmp_path / "teacher.gguf", Options(kind=kind)).path
    done = export("gguf", run, tmp_path / "student.gguf", Options(like=teacher, kind="f32"))
    before, after = tensors_of(teacher), tensors_of(done.path)
    old_name = {f"blk.{j}.": f"blk.{layer}." for j, layer in enumerate((0, 2, 3, 5))}
    old = {n: before[old_name.get(n[:6], n[:6]) + n[6:]] for n in after}
    different = {name for name in after if after[name] != old[name]}
    if kind == "f32" or knows_source:
        assert different == NEW and done.checked["new"] == 3
    else:
        assert different > NEW, "nothing says that the file is of the source, so its rounding counts as another value"
    if kind == "f32":
        assert float((from_file(done.path) - logits(run / "model")).abs().max()) == 0.0
    assert keys_of(done.path)["shoal.kept_blocks"] == [0, 2, 3, 5]
    assert done.checked["layouts"]["attn_q.weight"] == "rows interleaved in 4 heads"


@pytest.mark.parametrize(("kind", "stays"), [("f32", True), ("q8_0", True), ("q4_1", False)])
def test_a_graft_says_when_its_blocks_take_a_training_back(kind, stays, llama, tmp_path):
    """Values a little beside those that a file of four bits unpacks to: in its own steps they go back to where they were."""
    teacher = export("gguf", llama, tmp_path / "teacher.gguf", Options(kind="q4_1")).path
    read = {one.name: one for one in gguf.GGUFReader(teacher).tensors}["blk.3.ffn_down.weight"]
    old = gguf.quants.dequantize(read.data, read.tensor_type)
    new = old + np.random.default_rng(0).standard_normal(old.shape).astype(np.float32) * 0.01 * old.std()
    edits = (Drop(indices=(1, 4)), Refit(layer=3, parameters=REFIT[1:]))
    run = run_folder(llama, tmp_path / "run", *edits, values={f"refit.3.{REFIT[1]}": torch.from_numpy(new)})
    done = export("gguf", run, tmp_path / "student.gguf", Options(like=teacher, kind=kind))
    back = {one.name: one for one in gguf.GGUFReader(done.path).tensors}["blk.2.ffn_down.weight"]
    written = gguf.quants.dequantize(back.data, back.tensor_type)
    left = float(((written - old) * (new - old)).sum() / np.square(new - old).sum())
    assert done.checked["new"] == 1 and done.checked["left"] == pytest.approx(left, abs=1e-3) and (left > 0.8) == stays
    assert any("goes back to the steps of teacher.gguf" in note for note in done.notes) != stays


def test_a_removed_sublayer_is_grafted_as_zeros(llama, tmp_path):
    run = run_folder(llama, tmp_path / "run", Drop(indices=(2,), kind="attn"))
    teacher = export("gguf", llama, tmp_path / "teacher.gguf", Options(kind="q8_0")).path
    done = export("gguf", run, tmp_path / "student.gguf", Options(like=teacher))
    assert done.checked["new"] == 1
    assert not np.frombuffer(tensors_of(done.path)["blk.2.attn_output.weight"][2], dtype=np.uint8).any()


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A teacher's file that states the head of a tied model, and a student with other embeddings."""
    folder = tmp_path_factory.mktemp("tied")
    model = tiny_llama(2)
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    write_gguf(folder / "teacher.gguf", model)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1.25)
    model.save_pretrained(folder / "student")
    return folder


def test_a_head_that_the_student_ties_is_written_from_its_embeddings(tied, tmp_path):
    done = export("gguf", tied / "student", tmp_path / "m.gguf", Options(like=tied / "teacher.gguf", kind="f32"))
    found, before = tensors_of(done.path), tensors_of(tied / "teacher.gguf")
    assert "lm_head.weight" not in open_names(tied / "student") and done.checked["new"] == 2
    assert found["output.weight"] == found["token_embd.weight"] != before["output.weight"] == before["token_embd.weight"]


@pytest.mark.parametrize(("name", "is_refused"), [("blk.1.attn_q.bias", True), ("rope_freqs.weight", False)])
def test_a_tensor_that_the_student_lacks_is_refused_unless_it_follows_from_the_config(name, is_refused, tied, tmp_path):
    read = open_model(tied / "teacher.gguf")
    one = next(t for t in read.tensors if t.place.name == "output_norm.weight")
    kept = [Outgoing(t.place.name, t.place.shape, t.place.kind, t.place.n_bytes, t.chunks) for t in read.tensors]
    more = Outgoing(name, one.place.shape, one.place.kind, one.place.n_bytes, one.chunks)
    write_file(tmp_path / "more.gguf", read.keys, [*kept, more])
    options = Options(like=tmp_path / "more.gguf", kind="f32")
    if is_refused:
        with pytest.raises(ValueError, match=f"{name!r} of the file is no tensor of the student.*convert_hf_to_gguf.py"):
            export("gguf", tied / "student", tmp_path / "m.gguf", options)
    else:
        assert name in tensors_of(export("gguf", tied / "student", tmp_path / "m.gguf", options).path)


def test_a_file_of_another_model_is_refused(llama, cut_llama, tmp_path):
    other = tiny_llama(N)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_(0.0, 0.1)
    other.save_pretrained(tmp_path / "other")
    teacher = export("gguf", tmp_path / "other", tmp_path / "other.gguf", Options()).path
    with pytest.raises(ValueError, match="not what the student's teacher has there"):
        export("gguf", cut_llama, tmp_path / "out.gguf", Options(like=teacher))
    tiny_llama(N + 1).save_pretrained(tmp_path / "deep")
    deep = export("gguf", tmp_path / "deep", tmp_path / "deep.gguf", Options()).path
    with pytest.raises(ValueError, match="its plan does not say which are which"):
        export("gguf", cut_llama, tmp_path / "out.gguf", Options(like=deep))
    assert not (tmp_path / "out.gguf").exists()


def zeroed(source, folder, attn=(2,), mlp=(4,)):
    model = AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        for layer in attn:
            model.model.layers[layer].self_attn.o_proj.weight.zero_()
        for layer in mlp:
            model.model.layers[layer].mlp.down_proj.weight.zero_()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def uneven(tmp_path):
    """A Llama without attention in layer 2 and without MLP in layer 4, its MLP as wide as the folder format can state.

    Its heads have 32 numbers: vLLM has no kernel for fewer on processors without AVX-512.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=61, hidden_size=64, intermediate_size=256, num_hidden_layers=N, num_attention_heads=2, num_key_value_heads=1
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "even")
    return zeroed(tmp_path / "even", tmp_path / "uneven")


def test_uneven_layers_as_a_folder(uneven, tmp_path):
    done = export("blocks", uneven, tmp_path / "out", Options())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "nemotron-nas" and config["architectures"] == ["DeciLMForCausalLM"]
    have = [(not b["attention"]["no_op"], not b["ffn"]["no_op"]) for b in config["block_configs"]]
    assert have == [(i != 2, i != 4) for i in range(N)]
    assert config["block_configs"][0]["attention"]["n_heads_in_group"] == 2
    assert config["block_configs"][0]["ffn"]["ffn_mult"] == 1.5 * 256 / 64
    read = AutoConfig.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert read.block_configs[2].attention.no_op and read.to_dict()["block_configs"] == config["block_configs"]
    names = set(open_names(tmp_path / "out"))
    assert not any(n.startswith(("model.layers.2.self_attn", "model.layers.2.input_layernorm")) for n in names)
    assert not any(n.startswith(("model.layers.4.mlp", "model.layers.4.post_attention_layernorm")) for n in names)
    assert "model.layers.2.mlp.up_proj.weight" in names and done.checked["tensors"] == len(names)
    assert config["rope_theta"] == 10000.0


def open_names(folder):
    from safetensors import safe_open

    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            yield from file.keys()


def test_uneven_layers_as_a_file(uneven, tmp_path):
    export("blocks", uneven, tmp_path / "out.gguf", Options(kind="f32"))
    keys, tensors = keys_of(tmp_path / "out.gguf"), tensors_of(tmp_path / "out.gguf")
    assert keys["general.architecture"] == "deci"
    assert keys["deci.attention.head_count"] == [2, 2, 0, 2, 2, 2] and keys["deci.attention.head_count_kv"][2] == 0
    assert keys["deci.feed_forward_length"] == [256, 256, 256, 256, 32, 256]
    assert "blk.2.attn_q.weight" not in tensors and "blk.2.ffn_up.weight" in tensors
    assert tensors["blk.4.ffn_up.weight"][1] == (64, 32) and not any(tensors["blk.4.ffn_down.weight"][2])


REFUSALS = {
    ("blocks", "even"): "every layer has its attention and its MLP",
    ("blocks", "first"): "layer 0 has no attention",
    ("blocks", "qwen3"): "Llama-like models only.*'qwen3'",
    ("mergekit", "even"): "nothing says which layers",
    ("prune-layers", "even"): "nothing says which layers",
    ("gguf", "gpt2"): "'gpt2' is not among those written here.*--like TEACHER.gguf",
    ("gguf", "qwen2 windows"): "no sliding windows of 'qwen2'",
}


@pytest.mark.parametrize("case", REFUSALS, ids=" ".join)
def test_what_a_format_cannot_hold_is_refused(case, uneven, tmp_path):
    name, which = case
    folder = tmp_path / "m"
    if which == "even":
        shutil.copytree(tmp_path / "even", folder)
    elif which == "first":
        zeroed(tmp_path / "even", folder, attn=(0,))
    else:
        tiny_model(which.split()[0]).save_pretrained(folder)
    with pytest.raises(ValueError, match=REFUSALS[case]):
        export(name, folder, tmp_path / "out", Options())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(num_hidden_layers=62), "62 layers"),
        (dict(query_pre_attn_scalar=7), "width"),
        (dict(attn_logit_softcapping=30.0), "caps no attention"),
        (dict(quantization_config={"quant_method": "gptq"}), "quantised"),
        (dict(rope_parameters={"rope_type": "longrope", "rope_theta": 1.0}), "'longrope' is not written"),
        (dict(hidden_activation="gelu"), "runs the MLP of 'gemma3_text' with gelu_pytorch_tanh, this model has 'gelu'"),
    ],
)
def test_a_gemma_that_llama_cpp_would_compute_otherwise_is_refused(fields, message):
    config = {**tiny_config("gemma3_text").to_dict(), **fields}
    assert message in str(why_not(config))


@pytest.mark.parametrize("family", sorted(set(ARCHITECTURE_OF) - {"gemma3_text"}))
def test_another_activation_is_refused(family):
    config = {**tiny_config(family).to_dict(), **PLAIN[family]}
    assert why_not(config) is None
    assert "with silu, this model has 'relu'" in str(why_not({**config, "hidden_act": "relu"}))


YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("more", "refused"),
    [
        ({}, None),
        (dict(beta_fast=32, beta_slow=1.0, truncate=True, attention_factor=None, mscale=None), None),
        (dict(attention_factor=1.1386294361119891), None),
        (dict(beta_fast=4.0), "beta_fast=4.0"),
        (dict(beta_fast=32.0, beta_slow=2.0, attention_factor=2.0), "beta_slow=2.0, attention_factor=2.0"),
        (dict(truncate=False), "truncate=False"),
        (dict(something=[1]), "something=[1]"),
    ],
)
def test_yarn_is_written_with_the_values_that_llama_cpp_takes(more, refused):
    said = why_not({**tiny_config("llama").to_dict(), "rope_parameters": {**YARN, **more}})
    assert said is None if refused is None else f"'yarn' with {refused} is not written here" in str(said)


def test_pure_removal_as_text(cut_llama, llama):
    content = yaml.safe_load(export("mergekit", cut_llama, None, Options()).text)
    slices = [one["sources"][0] for one in content["slices"]]
    assert [one["layer_range"] for one in slices] == [[0, 1], [2, 4], [5, 6]] and slices[0]["model"] == str(llama)
    assert content["merge_method"] == "passthrough"
    assert export("prune-layers", cut_llama, None, Options()).text == "1,4"


def test_ranges_of_repeated_layers():
    assert ranges([0, 1, 2, 1, 2, 3]) == [[0, 3], [1, 4]] and ranges([3]) == [[3, 4]]


@pytest.mark.parametrize("name", ["mergekit", "prune-layers"])
def test_values_are_more_than_text_can_say(name, llama, tmp_path):
    run = repaired(llama, tmp_path / "run")
    with pytest.raises(ValueError, match="cannot be exported as"):
        export(name, run, None, Options())


def test_a_folder_for_other_readers(cut_llama, tmp_path):
    done = export("hf", cut_llama, tmp_path / "out", Options())
    assert done.checked["logit_difference"] == 0.0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] and config["torch_dtype"] == config["dtype"]


@pytest.mark.parametrize("name", EXPORTERS)
def test_every_format_explains_itself(name):
    one = EXPORTERS[name]
    assert one.name == name and one.about and one.about[0].islower() and "\n" not in one.about


def test_the_command(shoal, cut_llama, tmp_path):
    code, out, err = shoal("export", "gguf", cut_llama, "--out", tmp_path / "s.gguf", "--type", "q8_0", "--json")
    assert code == 0 and json.loads(out)["checked"]["layers"] == 4
    code, out, err = shoal("export", "prune-layers", cut_llama)
    assert code == 0 and out.splitlines()[0] == "1,4"


WRONG = [
    (("gguf", "{run}"), "needs --out"),
    (("ggfu", "{run}", "--out", "x"), "unknown format 'ggfu'; did you mean 'gguf'"),
    (("vllm", "{run}", "--out", "x"), "vllm is an engine; the format that it reads is hf: shoal export hf"),
    (("gguf", "{gguf}", "--out", "x"), "is a GGUF file already; `shoal cut"),
    (("mergekit", "{run}", "--type", "f16"), "--type has no meaning for the format mergekit; it belongs to gguf, blocks"),
    (("hf", "{run}", "--out", "x", "--like", "t.gguf"), "--like has no meaning for the format hf"),
    (("gguf", "{run}", "--out", "x", "--type", "q4_k_m"), "'q4_k_m' cannot be written, known: f32"),
    (("hf", "{run}", "--out", "{gguf}", "--overwrite"), "file.gguf is a file, and the format hf writes a folder there"),
    (("gguf", "nowhere", "--out", "x"), "nowhere is no checkpoint folder and no run folder"),
    (("gguf", "{run}", "--out", "x", "--like", "nowhere.gguf"), "nowhere.gguf is not there"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=lambda one: str(one)[:30])
def test_wrong_requests_are_one_line(words, message, shoal, cut_llama, tmp_path):
    (tmp_path / "file.gguf").write_bytes(b"GGUF")
    code, out, err = shoal("export", *(word.format(run=cut_llama, gguf=tmp_path / "file.gguf") for word in words))
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1


def test_gguf_heads_agree(cut_llama, tmp_path):
    done = export("gguf", cut_llama, tmp_path / "s.gguf", Options())
    assert len(open_model(done.path).tensors) == len(gguf.GGUFReader(done.path).tensors)
    assert keys_of(done.path)["shoal.kept_blocks"] == [0, 2, 3, 5]
