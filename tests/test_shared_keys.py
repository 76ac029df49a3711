"""Families whose last layers read the keys and values of earlier ones: cut file to file, exactly, or a candidate is refused."""

import json
from itertools import combinations

import pytest
import torch
from families import LLAMA
from safetensors.torch import load_file, save_file
from test_siblings import ends_well
from test_surgery_rewrite import removal
from text_world import word_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM
from world import N_WORDS

from shoal.checkpoint import copy_shards
from shoal.checkpoint.blueprint import edited_config
from shoal.checkpoint.rewrite import rewrite
from shoal.checkpoint.verify import verify
from shoal.engine.source import auto_class
from shoal.engine.view import DecoderView

F, W = "full_attention", "sliding_attention"
KINDS = [F, W, W, F, W, F]  # Layers 4 and 5 read the keys of 2 and 3.
N, SOURCES = len(KINDS), (0, 1, 2, 3, 2, 3)
TEXT = dict(
    {**LLAMA, "vocab_size": 64}, num_hidden_layers=N, num_kv_shared_layers=2, layer_types=KINDS, sliding_window=5,
    hidden_size_per_layer_input=4, vocab_size_per_layer_input=64,
)  # fmt: skip
SHARING = {
    "gemma3n_text": dict(
        TEXT, laurel_rank=4, altup_num_inputs=2, intermediate_size=[48, 48, 32, 32, 48, 48],
        activation_sparsity_pattern=[0.9, 0.9, 0.0, 0.0, 0.0, 0.0],
    ),
    "gemma4_text": dict(TEXT, global_head_dim=16, use_double_wide_mlp=True),
    "gemma4_unified_text": {key: one for key, one in TEXT.items() if "per_layer" not in key} | {"global_head_dim": 16},
}  # fmt: skip
CUTS = [(1,), (0, 1, 2, 4), (4, 5), (3, 5)]


def write_sharing(family, folder):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SHARING[family])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.1) if parameter.ndim >= 2 else parameter.normal_(1.0, 0.1)
    model.save_pretrained(folder)
    word_tokenizer(N_WORDS).save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=SHARING)
def source(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return folder, write_sharing(request.param, folder)


def without(model, layers, ids_BT):
    """Logits of the model while some of its layers return what they are given: the definition of their removal."""
    gone = [model.get_decoder().layers[layer] for layer in layers]
    for layer in gone:
        # Layers with an index of keys hand theirs on; each computes its own here.
        layer.forward = lambda h_BTD, *args, **kwargs: (h_BTD, None) if hasattr(model.config, "vision_feature_layer") else h_BTD
    try:
        with torch.no_grad():
            return model(input_ids=ids_BT, use_cache=False).logits
    finally:
        for layer in gone:
            del layer.__dict__["forward"]


def ends_in_a_window(config, kept):
    return config.model_type.startswith("gemma4") and KINDS[kept[-1]] == W


@pytest.mark.parametrize("gone", CUTS)
def test_what_is_cut_is_the_model_without_these_layers(source, gone, tmp_path, monkeypatch):
    folder, model = source
    if ends_in_a_window(model.config, [layer for layer in range(N) if layer not in gone]):
        with pytest.raises(ValueError, match=r"end in one of \[0, 3, 5\]"):
            rewrite(folder, removal(*gone), tmp_path / "student")
        return
    monkeypatch.setattr(copy_shards, "CHUNK", 1000)  # Tables are copied in several pieces.
    rewrite(folder, removal(*gone), tmp_path / "student")
    ids_BT = torch.arange(24).view(2, 12) + 3
    verify(tmp_path / "student", ids_BT=ids_BT, reference=lambda ids: without(model, gone, ids))
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    # Maps into the tables per layer lose rows, so their products may be summed in another order: some units of the last place.
    torch.testing.assert_close(
        student(input_ids=ids_BT, use_cache=False).logits, without(model, gone, ids_BT), atol=1e-5, rtol=0
    )


def test_of_all_cuts_those_are_refused_that_would_change_what_a_layer_reads(source):
    """The library's own rule, asked of the student's config, gives every layer the source that it had."""
    config = source[1].config
    assert [mode == "reuse" for mode in config.kv_sharing_modes] == [at != layer for layer, at in enumerate(SOURCES)]
    for n in range(1, N):
        for kept in combinations(range(N), n):
            lost = {SOURCES[layer] for layer in kept} - set(kept)
            if lost or ends_in_a_window(config, kept):
                with pytest.raises(ValueError, match="|".join(f"of layer {one};" for one in lost) or "ends in"):
                    edited_config(config, kept)
                continue
            student = edited_config(config, kept)
            last = {kind: layer for layer, kind in zip(kept, student.layer_types, strict=True) if SOURCES[layer] == layer}
            read = [last[kind] if mode == "reuse" else layer
                    for layer, kind, mode in zip(kept, student.layer_types, student.kv_sharing_modes, strict=True)]  # fmt: skip
            assert read == [SOURCES[layer] for layer in kept]


def test_the_command_cuts_such_a_model_and_says_what_it_cannot_do(tmp_path, shoal):
    write_sharing("gemma4_text", tmp_path / "m")
    code, _, err = shoal("apply", "m", "--layers", "3", "--out", "no")
    ends_well(code, err, said="--layers 3 cannot be done: model type 'gemma4_text': layer 5 reads the keys")
    code, _, err = shoal("scan", "m", "--out", "no")
    ends_well(code, err, said="it can be cut file to file: shoal apply MODEL --layers LIST")
    assert not (tmp_path / "no").exists()
    assert shoal("plan", "m", "--recipe", "uidl-simple", "--drop", 2, "--out", "p")[0] == 0
    code, _, err = shoal("apply", "p/plan.json", "--out", "student")
    assert code == 0, err
    plan = json.loads((tmp_path / "p" / "plan.json").read_text())
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert plan["after"] == {"layers": 4, "parameters": sum(one.numel() for one in student.parameters())} | {
        key: plan["after"][key] for key in ("bytes", "active") if key in plan["after"]
    }


def test_a_wrapper_keeps_its_tower_and_its_decoder_is_cut_alike(tmp_path):
    tower = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    parts = {"text_config": SHARING["gemma4_text"], "vision_config": {**tower, "head_dim": 8, "position_embedding_size": 16}}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma4", **parts)).eval()
    model.save_pretrained(tmp_path / "m")
    rewrite(tmp_path / "m", removal(1, 4), tmp_path / "student")
    ids_BT = torch.arange(24).view(2, 12) + 3
    verify(tmp_path / "student", ids_BT=ids_BT, reference=lambda ids: without(model, (1, 4), ids))
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("student", "m"))
    towers = [name for name in theirs if "vision" in name]
    assert towers and all(torch.equal(ours[name], theirs[name]) for name in towers)


LISTED = (0, 0, 2, 0, 2, 5)  # Layers 1 and 3 read the keys of 0, layer 4 those of 2, which has no rotary embedding, nor has 4.


def write_listing(folder):
    text = dict(
        LLAMA, vocab_size=64, num_hidden_layers=N, num_key_value_heads=4, kv_source_layers=list(LISTED),
        no_rope_layers=[1, 1, 0, 1, 0, 1],
        moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, kv_lora_rank=8, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=8, head_dim=8, index_topk=64, index_head_dim=16, index_n_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    tower = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=4, image_size=16)
    parts = {"text_config": text, "vision_config": {"model_type": "pixtral", **tower}}
    torch.manual_seed(0)
    config = AutoConfig.for_model("mistral_large4", **parts)
    model = auto_class(config).from_config(config).eval()
    model.save_pretrained(folder)
    return model


def test_sources_that_are_listed_are_cut_with_their_layers(tmp_path):
    """Mistral Large 4 was refused whole."""
    model = write_listing(tmp_path / "m")
    with pytest.raises(ValueError, match=r"kv_source_layers=\[0, 0, 2, 0, 2, 5\].*cut file to file"):
        DecoderView(model)
    for n in range(1, N):
        for kept in combinations(range(N), n):
            if {LISTED[layer] for layer in kept} - set(kept):
                with pytest.raises(ValueError, match="the keys and values of layer"):
                    edited_config(model.config, kept)
                continue
            found = edited_config(model.config, kept).text_config
            assert [kept[source] for source in found.kv_source_layers] == [LISTED[layer] for layer in kept]
    ids_BT = torch.arange(24).view(2, 12) + 3
    for gone in [(1,), (2, 4), (0, 1, 3), (3, 5)]:
        rewrite(tmp_path / "m", removal(*gone), tmp_path / str(gone))
        verify(tmp_path / str(gone), ids_BT=ids_BT, reference=lambda ids, gone=gone: without(model, gone, ids))


def test_a_packed_table_is_refused(tmp_path):
    write_sharing("gemma4_text", tmp_path / "m")
    values = load_file(tmp_path / "m" / "model.safetensors")
    name = "model.per_layer_model_projection.weight"
    values[name] = values[name].view(-1, 2)
    save_file(values, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="holds a block for every layer and is stored as"):
        rewrite(tmp_path / "m", removal(1), tmp_path / "student")
