"""Models with images around a plain text decoder: the decoder is scanned and cut, everything else stays byte for byte."""

import json

import pytest
import torch
from gguf_files import tensors_of
from safetensors.torch import load_file
from test_export_table import plan_of, run_folder
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3Config,
    LlavaConfig,
    Qwen2_5_VLConfig,
    Qwen3VLConfig,
)

from shoal.checkpoint.in_memory import cut
from shoal.checkpoint.rewrite import rewrite
from shoal.checkpoint.verify import verify
from shoal.edits.drop import Drop
from shoal.edits.refit import Refit
from shoal.engine.open import open_model
from shoal.engine.source import auto_class, wrapper_class
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.export.engines import run_transformers
from shoal.export.exporter import Options
from shoal.export.table import export
from shoal.words.types import Batch, Unit

N, GONE = 6, (1, 2)
TEXT = dict(
    hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, vocab_size=61, head_dim=8,
    max_position_embeddings=64, num_hidden_layers=N, pad_token_id=0,
)  # fmt: skip
# As deep as the text model, so that the two lists of layers are told apart by more than their length.
VISION = dict(
    hidden_size=32, intermediate_size=48, num_attention_heads=4, num_hidden_layers=N, image_size=28, patch_size=14
)  # fmt: skip
CONFIGS = {
    "gemma3": lambda: Gemma3Config(
        text_config={**TEXT, "model_type": "gemma3_text", "query_pre_attn_scalar": 8, "sliding_window": 5},
        vision_config={**VISION, "model_type": "siglip_vision_model"},
        mm_tokens_per_image=4,
        image_token_index=60,
    ),
    "qwen2_5_vl": lambda: Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
        vision_config=dict(depth=N, hidden_size=32, intermediate_size=48, num_heads=4, out_hidden_size=32, patch_size=14),
    ),
    "llava": lambda: LlavaConfig(
        text_config={**TEXT, "model_type": "llama"},
        vision_config={**VISION, "model_type": "clip_vision_model"},
        image_token_index=60,
    ),
}
IDS = torch.arange(40).remainder(59).view(2, 20)


@pytest.fixture(scope="module", params=CONFIGS)
def source(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param) / "source"
    AutoModelForImageTextToText.from_config(CONFIGS[request.param]()).save_pretrained(folder)
    return folder


def skipping(folder):
    """The whole model whose removed layers pass their input on."""
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    for layer in GONE:
        model.model.language_model.layers[layer].forward = lambda h, *args, **kwargs: h
    return model


def test_the_decoder_is_run_layer_by_layer(source):
    view = DecoderView(open_model(source).model)
    with torch.no_grad():
        whole = view.model(input_ids=IDS, use_cache=False).logits
        student = view.logits(Batch(IDS), student=Student(frozenset(Unit("layer", layer) for layer in GONE)))
        assert view.n_layers == N and torch.equal(view.logits(Batch(IDS)), whole)
        assert torch.equal(student, skipping(source)(input_ids=IDS, use_cache=False).logits)


def test_file_to_file_leaves_the_images_alone(source, tmp_path):
    out = rewrite(source, plan_of(source, Drop(indices=GONE)), tmp_path / "out")
    model, info = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    before, after = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    beside = [name for name in before if "vision" in name or "visual" in name or "projector" in name]
    assert len(beside) > 20 and all(torch.equal(before[name], after[name]) for name in beside)
    was, now = (json.loads((folder / "config.json").read_text()) for folder in (source, out))
    assert now["vision_config"] == was["vision_config"] and now["text_config"]["num_hidden_layers"] == N - len(GONE)
    with torch.no_grad():
        assert torch.equal(
            model.eval()(input_ids=IDS, use_cache=False).logits, skipping(source)(input_ids=IDS, use_cache=False).logits
        )
    assert verify(out, ids_BT=IDS).cache_difference < 1e-4


def test_values_of_kept_layers_are_written_where_they_stand(source, tmp_path):
    layer = AutoModelForImageTextToText.from_pretrained(source).model.language_model.layers[4]
    name = "mlp.down_proj.weight"
    value = layer.get_parameter(name).detach() * 1.5
    run = run_folder(
        source, tmp_path / "run", Drop(indices=GONE), Refit(layer=4, parameters=(name,)), values={f"refit.4.{name}": value}
    )
    model = AutoModelForImageTextToText.from_pretrained(run / "model")
    assert torch.equal(model.model.language_model.layers[2].get_parameter(name), value)


def test_in_memory_equals_file_to_file(source, tmp_path):
    view = DecoderView(open_model(source).model)
    student = cut(view, Student(frozenset(Unit("layer", layer) for layer in GONE)))
    out = rewrite(source, plan_of(source, Drop(indices=GONE)), tmp_path / "out")
    theirs = AutoModelForImageTextToText.from_pretrained(out).state_dict()
    assert student.state_dict().keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in student.state_dict().items())


def test_an_image_goes_through_the_student(tmp_path):
    folder = tmp_path / "source"
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(CONFIGS["llava"]()).save_pretrained(folder)
    out = rewrite(folder, plan_of(folder, Drop(indices=GONE)), tmp_path / "out")
    given = {
        "input_ids": torch.tensor([[3, 60, 60, 60, 60, 7, 8]]),
        "pixel_values": torch.randn(1, 3, 28, 28),
        "use_cache": False,
    }
    with torch.no_grad():
        student = AutoModelForImageTextToText.from_pretrained(out).eval()(**given).logits
        assert torch.equal(student, skipping(folder)(**given).logits)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A tiny Qwen3-VL, which adds features of an image behind each of its first two layers."""
    torch.manual_seed(0)
    rotary = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    vision = dict(
        depth=2, hidden_size=32, intermediate_size=48, num_heads=4, patch_size=4, out_hidden_size=32,
        num_position_embeddings=16, deepstack_visual_indexes=[0, 1],
    )  # fmt: skip
    special = dict(image_token_id=57, video_token_id=58, vision_start_token_id=59, vision_end_token_id=60)
    config = Qwen3VLConfig(text_config={**TEXT, "rope_parameters": rotary}, vision_config=vision, **special)
    folder = tmp_path_factory.mktemp("deep") / "source"
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    return folder


def test_layers_behind_which_an_image_is_added_stay_where_they_are(deep, tmp_path):
    """A text alone would not show it: a student without one of them adds the image elsewhere."""
    given = {
        "input_ids": torch.tensor([[5, 59, 57, 57, 57, 57, 60, 7, 8]]),
        "mm_token_type_ids": torch.tensor([[0, 0, 1, 1, 1, 1, 0, 0, 0]]),
        "pixel_values": torch.randn(16, 96),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "use_cache": False,
    }
    out = rewrite(deep, plan_of(deep, Drop(indices=(2, 4))), tmp_path / "out")
    teacher = AutoModelForImageTextToText.from_pretrained(deep).eval()
    for layer in (2, 4):
        teacher.model.language_model.layers[layer].forward = lambda h, *args, **kwargs: h
    with torch.no_grad():
        student = AutoModelForImageTextToText.from_pretrained(out).eval()(**given).logits
        assert torch.equal(student, teacher(**given).logits)
    for gone in (0, 1):
        with pytest.raises(ValueError, match=r"'qwen3_vl_text'.*keep layers 0\.\.1"):
            rewrite(deep, plan_of(deep, Drop(indices=(gone,))), tmp_path / "refused")


def decoder_file(source, folder):
    """The text decoder alone as a file in single precision, as a converter of llama.cpp writes it."""
    wrapped = AutoModelForImageTextToText.from_pretrained(source)
    text = AutoModelForCausalLM.from_config(wrapped.config.text_config)
    text.model.load_state_dict(wrapped.model.language_model.state_dict())
    text.lm_head.load_state_dict(wrapped.lm_head.state_dict())
    text.save_pretrained(folder / "text")
    return export("gguf", folder / "text", folder / "teacher.gguf", Options(kind="f32")).path


@pytest.mark.parametrize("source", ["llava", "gemma3"], indirect=True)
def test_a_decoder_is_grafted_without_what_sees(source, tmp_path):
    """Its file is that of the decoder alone, cut and grafted; the tower and the projector have no place in it."""
    name = "mlp.down_proj.weight"
    value = (
        AutoModelForImageTextToText.from_pretrained(source).model.language_model.layers[4].get_parameter(name).detach() * 1.5
    )
    edits = Drop(indices=GONE), Refit(layer=4, parameters=(name,))
    run = run_folder(source, tmp_path / "run", *edits, values={f"refit.4.{name}": value})
    teacher = decoder_file(source, tmp_path)
    done = export("gguf", run, tmp_path / "student.gguf", Options(like=teacher, kind="f32"))
    before, after = tensors_of(teacher), tensors_of(done.path)
    kept = [layer for layer in range(N) if layer not in GONE]
    old = {n: before[f"blk.{kept[int(n.split('.')[1])]}.{n.split('.', 2)[2]}" if n.startswith("blk.") else n] for n in after}
    assert {n for n in after if after[n] != old[n]} == {"blk.2.ffn_down.weight"}
    assert after["blk.2.ffn_down.weight"][2] == value.numpy().tobytes()
    assert any("mmproj" in note for note in done.notes)


@pytest.mark.parametrize(
    ("family", "wrapped"),
    [("llava", True), ("qwen2_5_vl", True), ("gemma3", False), ("llama", False), ("bert", False), (None, False)],
)
def test_which_class_opens_a_family(family, wrapped, tmp_path):
    assert (wrapper_class({"model_type": family}) is not None) == wrapped
    assert auto_class({"model_type": family}).__name__ == ("AutoModelForImageTextToText" if wrapped else "AutoModelForCausalLM")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    assert run_transformers.auto_class(tmp_path) is auto_class({"model_type": family}), "the engine opens what we open"


@pytest.mark.parametrize(
    ("family", "architecture", "said"),
    [
        ("clip", "CLIPModel", "'clip' has no causal language model"),
        ("whisper", "WhisperForConditionalGeneration", "'whisper'\\) is not a causal language model"),
        ("t5", "T5ForConditionalGeneration", "'t5' has no causal language model"),
    ],
)
def test_a_model_without_a_text_decoder_is_refused_by_name(family, architecture, said, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, "architectures": [architecture]}))
    with pytest.raises(ValueError, match=said):
        open_model(tmp_path)
