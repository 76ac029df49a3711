"""An edited config describes exactly the kept layers: every field, every pattern, every family; or it is refused by name."""

import json
from itertools import combinations

import pytest
from families import FAMILIES, tiny_config
from transformers import AutoConfig

from shoal.checkpoint.blueprint import check_can_be_cut, check_layers, edited_config, first_difference
from shoal.checkpoint.config_fields import PER_LAYER, count_layers, edited_config_dict
from shoal.checkpoint.consumed_fields import edited_consumed
from shoal.checkpoint.generation_layers import edited_generation
from shoal.engine.families import find_layers
from shoal.engine.model_config import build_empty as blueprint

N = 6
SUBSETS = [kept for size in range(1, N + 1) for kept in combinations(range(N), size)]


def llama_like(**fields):
    return {"model_type": "thing", "num_hidden_layers": N, "hidden_size": 8, **fields}


@pytest.mark.parametrize("field", PER_LAYER)
def test_lists_with_one_entry_per_layer_are_filtered(field):
    edited = edited_config_dict(llama_like(**{field: [f"kind{i}" for i in range(N)]}), (0, 3, 5))
    assert edited[field] == ["kind0", "kind3", "kind5"] and edited["num_hidden_layers"] == 3


@pytest.mark.parametrize("field", PER_LAYER)
def test_lists_of_another_length_are_refused(field):
    with pytest.raises(ValueError, match=f"{field} has 4 entries for 6 layers"):
        edited_config_dict(llama_like(**{field: ["a"] * 4}), (0, 1))


@pytest.mark.parametrize("field", ["intermediate_size", "num_experts", "moe_topk"])
def test_scalars_of_fields_that_may_be_lists_stay(field):
    assert edited_config_dict(llama_like(**{field: 16}), (0, 1))[field] == 16


@pytest.mark.parametrize("field", ["moe_layers", "full_attn_idxs", "attn_layer_indices", "ple_layer_ids", "local_layer_ids"])
def test_index_lists_are_renumbered(field):
    assert edited_config_dict(llama_like(**{field: [1, 3, 4]}), (0, 3, 4, 5))[field] == [1, 2]


# name -> (fields of the source, what layer i of n is according to a dict of fields): written independently of the code
PATTERNS = {
    "dense prefix": (dict(first_k_dense_replace=3), lambda c, i, n: i >= c["first_k_dense_replace"]),
    "dense prefix beyond the model": (dict(first_k_dense_replace=9), lambda c, i, n: i >= c["first_k_dense_replace"]),
    "dense layers": (dict(num_dense_layers=2), lambda c, i, n: i >= c["num_dense_layers"]),
    "window layers": (dict(max_window_layers=4), lambda c, i, n: i >= c["max_window_layers"]),
    "sparse step": (
        dict(decoder_sparse_step=2, mlp_only_layers=[3]),
        lambda c, i, n: i not in c["mlp_only_layers"] and (i + 1) % c["decoder_sparse_step"] == 0,
    ),
    "ernie": (
        dict(moe_layer_interval=2, moe_layer_start_index=1, moe_layer_end_index=-1),
        lambda c, i, n: (
            (i + 1) % c["moe_layer_interval"] == 0
            and c["moe_layer_start_index"] <= i <= (n - 1 if c["moe_layer_end_index"] == -1 else c["moe_layer_end_index"])
        ),
    ),
    "jamba": (
        dict(attn_layer_period=3, attn_layer_offset=1),
        lambda c, i, n: i % c["attn_layer_period"] == c["attn_layer_offset"],
    ),
    "experts of jamba": (
        dict(expert_layer_period=2, expert_layer_offset=1),
        lambda c, i, n: i % c["expert_layer_period"] == c["expert_layer_offset"],
    ),
    "gpt_neo": (
        dict(attention_types=[[["global", "local"], 3]]),
        lambda c, i, n: [kind for kinds, times in c["attention_types"] for _ in range(times) for kind in kinds][i],
    ),
    "recurrent_gemma": (
        dict(block_types=["recurrent", "recurrent", "attention"]),
        lambda c, i, n: (c["block_types"] * n)[i],
    ),
    "per layer config": (
        dict(per_layer_config={"1": {"head_dim": 4}, "4": {"head_dim": 2}}),
        lambda c, i, n: c["per_layer_config"].get(str(i)),
    ),
    "minicpm3": (dict(scale_depth=1.4), lambda c, i, n: c["scale_depth"] / n**0.5),
}
MAY_REFUSE = {"ernie", "jamba", "experts of jamba"}


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_describes_the_kept_layers_or_is_refused(name):
    fields, kind = PATTERNS[name]
    config, refused = llama_like(**fields), 0
    for kept in SUBSETS:
        try:
            edited = edited_config_dict(config, kept)
        except ValueError as error:
            assert name in MAY_REFUSE and next(iter(fields)) in str(error)
            refused += 1
            continue
        for j, layer in enumerate(kept):
            assert kind(edited, j, len(kept)) == kind(config, layer, N), (kept, edited)
    assert refused < len(SUBSETS) / 2 and (refused > 0) == (name in MAY_REFUSE)


def test_whole_periods_can_be_removed():
    config = llama_like(attn_layer_period=3, attn_layer_offset=1, expert_layer_period=3, expert_layer_offset=2)
    edited = edited_config_dict(dict(config, num_hidden_layers=12), (0, 1, 2, 6, 7, 8, 9, 10, 11))
    assert edited == dict(config, num_hidden_layers=9)


@pytest.mark.parametrize("field", ["num_hidden_layers", "n_layer", "n_layers", "num_layers"])
@pytest.mark.parametrize("nested", [None, "text_config", "llm_config"])
def test_the_count_goes_by_any_name_at_any_place(field, nested):
    inner = {"model_type": "thing", field: N, "layer_types": list("abcdef")}
    config = inner if nested is None else {"model_type": "outer", nested: inner, "vision_config": {"num_hidden_layers": N}}
    edited = edited_config_dict(config, (1, 2))
    decoder = edited if nested is None else edited[nested]
    assert decoder == {"model_type": "thing", field: 2, "layer_types": ["b", "c"]} and count_layers(edited) == 2
    if nested:
        assert edited["vision_config"] == {"num_hidden_layers": N}
    assert inner[field] == N, "the source's dict is not edited"


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("hybrid_override_pattern", "MEM*EM", "M*E"),
        ("index_topk_pattern", ["F", "S"] * 3, ["F", "S", "F"]),
        ("moe_layer_freq", [0, 1, 1, 1, 1, 1], [0, 1, 1]),
        ("first_k_dense_replace", 2, 1),
        ("num_hash_layers", 4, 2),
        ("scales", {"0": 1, "4": 2, "5": 3}, {"0": 1, "2": 2}),
        ("moe_layers", [1, 3], [1]),
        ("attn_layer_period", 3, None),
        ("skipped_layers", [1, 3], None),
        ("rope_theta", 10.0, 10.0),
        ("languages", ["a"] * N, ["a"] * N),
    ],
)
def test_a_field_that_transformers_turns_into_another_is_edited_for_those_who_read_the_old_one(field, value, wanted):
    """The config that is read has other fields; None: the old field goes."""
    read, more = AutoConfig.for_model("llama", num_hidden_layers=N), {"attn_layer_offset": 0} if "period" in field else {}
    found = edited_consumed({"model_type": "llama", field: value, **more}, read, (0, 3, 4), N)
    assert found == {"model_type": "llama", **({} if wanted is None else {field: wanted})}
    assert edited_consumed({field: value}, read, range(N), N) == {field: value}


def test_layers_in_a_generation_config_are_those_of_the_student():
    stated = {"assistant_early_exit": 4, "dola_layers": [0, 2, 4, 6], "max_length": 9}
    assert edited_generation(stated, (0, 3, 4)) == {"assistant_early_exit": 2, "dola_layers": [0, 1, 2, 3], "max_length": 9}
    assert edited_generation({"assistant_early_exit": 2, "dola_layers": "low"}, (4, 5)) == {"dola_layers": "low"}


def test_keeping_everything_changes_nothing():
    config = llama_like(strange_layers=[1] * N, num_kv_shared_layers=2)
    assert edited_config_dict(config, range(N)) == config


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (dict(strange=[0.1] * N), "strange"),
        (dict(sparse_layer_ids=[1, 2]), "sparse_layer_ids"),
        (dict(overrides={"0": 1, "3": 2}), "overrides"),
        (dict(overrides={0: 1, 3: 2}), "overrides"),
        (dict(overrides={"default": 1, "3": 2}), "overrides"),
        (dict(section={"inner": {"scales": {"3": 0.5}}}), "section.inner.scales"),
        (dict(section={"inner": {"scales": [0.5] * N}}), "section.inner.scales"),
        (dict(section=[{"layers": [1, 2]}, {"layers": [4]}]), "section.layers"),
        (dict(section={"skip_layers": ["1", "2"]}), "section.skip_layers"),
        (dict(quantization_config={"bits": [4, 8] * 3}), "quantization_config.bits"),
        (dict(quantization_config={"group": {"layer_ids": [3]}}), "quantization_config.group.layer_ids"),
        (dict(moe_layers_enum="2,3,4"), "moe_layers_enum"),
        (dict(section={"layers": "2-4"}), "section.layers"),
        (dict(exit_layer=3), "exit_layer"),
        (dict(section={"start_layer": 0}), "section.start_layer"),
        (dict(intermediate_size={"0": 8, "3": 16}), "intermediate_size"),
        (dict(layer_types="ffsffs"), "layer_types"),
        (dict(attn_layer_indices=["1", "3"]), "attn_layer_indices"),
        (dict(attn_layer_indices=[-1]), "attn_layer_indices"),
        (dict(moe_layers={"1": True}), "moe_layers"),
        (dict(decoder_sparse_step=1, mlp_only_layers=["1"]), "mlp_only_layers"),
        (dict(max_window_layers="3"), "max_window_layers"),
        (dict(linear_attn_config={"kda_layers": [1, 2]}), "linear_attn_config.kda_layers"),
        (dict(num_kv_shared_layers=2), "num_kv_shared_layers"),
        (dict(hidden_size_per_layer_input=4), "hidden_size_per_layer_input"),
        (dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx"),
        (dict(cross_attention_layers=[3]), "cross_attention_layers"),
        (dict(indexer_types=["full", "shared"] * 3), "indexer_types"),
        (dict(kv_source_layers=[0, 0, 1, 2, 3, 4]), "kv_source_layers"),
        (dict(sliding_window_pattern=4), "sliding_window_pattern"),
        (dict(first_k_dense_replace=[0, 1]), "first_k_dense_replace"),
    ],
)
def test_what_cannot_be_described_is_refused_by_name(fields, named):
    with pytest.raises(ValueError, match=f"'thing'.*{named}"):
        edited_config_dict(llama_like(**fields), (0, 1, 2))


@pytest.mark.parametrize(
    "fields",
    [
        dict(eos_token_id=list(range(N)), architectures=["X"] * N),
        dict(id2label={str(i): "label" for i in range(N)}),
        dict(rope_parameters={"long_factor": [1.0] * N}),
        dict(rope_parameters={"full_attention": {"short_factor": [1.0] * N}}, section={"shape": [1, 2], "label2id": {"1": N}}),
        dict(quantization_config={"ignore": [f"model.layers.{i}.mlp.gate" for i in range(N)], "weight_block_size": [128, 128]}),
        dict(quantization_config={"ignored_layers": ["lm_head"]}, exit_layer=None, layer_norm_eps=1, n_early_layers=3),
        dict(num_kv_shared_layers=0, hidden_size_per_layer_input=0, scale_attn_by_inverse_layer_idx=False),
        dict(sliding_window_pattern=4, layer_types=["a"] * N),
    ],
)
def test_harmless_fields_of_length_n_stay(fields):
    edited = edited_config_dict(llama_like(**fields), (0, 1))
    assert {key: edited[key] for key in fields if key != "layer_types"} == {
        k: v for k, v in fields.items() if k != "layer_types"
    }


def around_text(model_type="seeing", vision=None, **fields):
    text = {"model_type": "thing", "num_hidden_layers": N}
    return {"model_type": model_type, "text_config": text, "vision_config": {"model_type": "v", **(vision or {})}, **fields}


def test_layers_behind_which_an_image_is_added_stay_the_first():
    """DeepStack adds the features of the i-th of these vision layers behind text layer i, inside the model's own forward."""
    config = around_text(vision={"deepstack_visual_indexes": [5, 11]})
    for kept in SUBSETS:
        if kept[:2] == (0, 1):
            assert edited_config_dict(config, kept)["text_config"]["num_hidden_layers"] == len(kept)
            continue
        with pytest.raises(ValueError, match=r"'thing'.*first 2 layers.*keep layers 0\.\.1 \(--protect 0,1\)"):
            edited_config_dict(config, kept)


def test_layers_before_which_an_image_is_added_are_renumbered_or_refused():
    """Granite 4 Vision names them in the config around the text model's; a number beyond the layers names none."""
    config = around_text(deepstack_layer_map=[[-19, 4], (-1, 0)], spatial_target_layers=[2, 9], vision_feature_layer=-1)
    edited = edited_config_dict(config, (0, 2, 4))
    assert edited["deepstack_layer_map"] == [[-19, 2], (-1, 0)] and edited["spatial_target_layers"] == [1, 9]
    assert edited_config_dict(config, (0, 1, 2, 3, 3, 3, 3, 4, 5, 5, 5))["spatial_target_layers"] == [2, 11]
    for gone in (0, 2, 4):
        with pytest.raises(ValueError, match=r"before its layers 0, 2, 4 .*keep .* \(--protect 0,2,4\)"):
            edited_config_dict(config, [layer for layer in range(N) if layer != gone])
    for bad in (dict(deepstack_layer_map=[[1, 2, 3]]), dict(spatial_target_layers=["1"])):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} needs .*mend config.json"):
            edited_config_dict(around_text(**bad), (0, 1))


@pytest.mark.parametrize("fields", [dict(text_exit_layer=3), dict(fused_layers=[1, 2]), dict(scales={"0": 1.0})])
def test_fields_around_the_text_decoder_that_may_speak_of_its_layers_are_refused(fields):
    with pytest.raises(ValueError, match=f"'thing'.*{next(iter(fields))}"):
        edited_config_dict(around_text(**fields), (0, 1))


def test_fields_that_speak_of_other_stacks_stay():
    fields = dict(vision_feature_layer=[-2, 3], insert_layer_id=2, projector_patch_to_query_dict={"12": 3})
    config = around_text(vision={"layer_types": ["a"] * N}, image_grid_pinpoints=[[1, 1]] * N, **fields)
    edited = edited_config_dict(config, (1, 2))
    assert edited == {**config, "text_config": {"model_type": "thing", "num_hidden_layers": 2}}


@pytest.mark.parametrize(("kept", "message"), [((), "at least one"), ((0, 6), "layer 6 is not in 0..5"), ((-1,), "layer -1")])
def test_impossible_layers_are_refused(kept, message):
    with pytest.raises(ValueError, match=message):
        edited_config_dict(llama_like(), kept)


HYBRIDS = {
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "layers_block_type": ["mamba", "attention", "mamba", "moe"],
}


@pytest.mark.parametrize("field", HYBRIDS)
def test_a_hybrid_keeps_an_attention_layer(field):
    config = {"model_type": "mixed", "num_hidden_layers": 4, field: HYBRIDS[field]}
    attention = [i for i, kind in enumerate(HYBRIDS[field]) if kind in ("attention", "full_attention")]
    edited_config_dict(config, [0, *attention])
    with pytest.raises(ValueError, match="'mixed'.*last attention layer"):
        edited_config_dict(config, [i for i in range(4) if i not in attention])


def test_a_family_that_reads_its_length_from_the_first_layer_keeps_attention_there():
    config = {"model_type": "minimax", "num_hidden_layers": 4, "layer_types": ["full_attention", "linear_attention"] * 2}
    edited_config_dict(config, (0, 1, 3))
    with pytest.raises(ValueError, match="'minimax'.*first layer"):
        edited_config_dict(config, (1, 2, 3))


def test_window_and_full_attention_is_no_hybrid():
    config = llama_like(layer_types=["sliding_attention"] * 5 + ["full_attention"])
    assert edited_config_dict(config, (0, 1))["layer_types"] == ["sliding_attention"] * 2


@pytest.mark.in_turn(3)
@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize("kept", [(0, 1, 4, 5), (1, 3, 4), (5,)], ids=str)
def test_the_edited_config_builds_the_kept_layers(name, kept):
    config = tiny_config(name)
    plan = check_layers(config, kept)
    ours, theirs = find_layers(plan)[1], find_layers(blueprint(config))[1]
    assert len(ours) == len(kept) and config.to_dict() == tiny_config(name).to_dict(), "the source's config is not edited"
    for j, layer in enumerate(kept):
        assert first_difference(ours[j], theirs[layer]) is None
    edited = edited_config(config, kept)
    again = AutoConfig.for_model(name).from_dict(json.loads(edited.to_json_string(use_diff=False)))
    assert again.to_dict() == edited.to_dict(), "what is saved is what is read"
    if getattr(config, "layer_types", None):
        assert edited.layer_types == [config.layer_types[layer] for layer in kept], "masks are chosen by this list"


def test_equal_configs_are_built_once_and_others_anew(monkeypatch):
    """What is remembered is told apart by every field: a wrong neighbour would let a wrong cut pass."""
    from shoal.checkpoint import blueprint as room

    built = []
    monkeypatch.setattr(room, "BUILT", {})
    monkeypatch.setattr(room, "build_empty", lambda config, **how: (built.append(config), blueprint(config, **how))[1])
    kept = (0, 1, 4, 5)
    assert check_layers(tiny_config("qwen3_moe"), kept) is check_layers(tiny_config("qwen3_moe"), kept)
    assert len(built) == 2
    other = tiny_config("qwen3_moe")
    other.mlp_only_layers = [0]
    found = check_layers(other, kept)
    assert len(built) == 4 and len(room.BUILT) <= room.MOST_REMEMBERED
    assert hasattr(find_layers(found)[1][1].mlp, "experts") and not hasattr(find_layers(found)[1][0].mlp, "experts")


OUT_OF_STEP = {
    "gemma3_text": "layer_types",
    "smollm3": "no_rope_layers",
    "deepseek_v3": "first_k_dense_replace",
    "qwen3_moe": "mlp_only_layers",
}


@pytest.mark.parametrize("name", OUT_OF_STEP)
def test_layers_out_of_step_with_their_config_are_seen(name):
    config, kept = tiny_config(name), (1, 2, 4, 5)
    stale = edited_config(config, kept)
    value = getattr(config, OUT_OF_STEP[name])  # Counting alone leaves this.
    setattr(stale, OUT_OF_STEP[name], value[:4] if isinstance(value, list) and len(value) == N else value)
    built, source = find_layers(blueprint(stale))[1], find_layers(blueprint(config))[1]
    assert any(first_difference(built[j], source[layer]) for j, layer in enumerate(kept))


def test_a_setting_that_depends_on_the_position_is_refused_by_name():
    config = AutoConfig.for_model(
        "diffllama", hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, vocab_size=61,
        num_hidden_layers=4,
    )  # fmt: skip
    check_layers(config, (0, 1, 2))
    check_can_be_cut(config)  # Its last layer may go; what may not is said of each candidate.
    with pytest.raises(ValueError, match="'diffllama'.*layer 2.*lambda_init"):
        check_layers(config, (0, 2, 3))


def test_a_family_is_refused_before_it_is_measured_only_where_no_span_may_go():
    check_can_be_cut(tiny_config("llama"))
    config = tiny_config("llama")
    config.unknown_layers = [[i] for i in range(config.num_hidden_layers)]
    with pytest.raises(ValueError, match="unknown_layers, a list that looks per-layer"):
        check_can_be_cut(config)


def jamba(n_layers):
    return AutoConfig.for_model(
        "jamba", hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, vocab_size=61,
        num_hidden_layers=n_layers, num_experts=4, num_experts_per_tok=2, mamba_d_state=4, mamba_dt_rank=4,
        attn_layer_period=8, attn_layer_offset=4, expert_layer_period=2, expert_layer_offset=1, use_mamba_kernels=False,
    )  # fmt: skip


def test_a_periodic_family_can_be_cut_where_its_periods_allow():
    config = jamba(16)
    check_can_be_cut(config)
    check_layers(config, [*range(4), *range(12, 16)])  # A whole period goes.
    check_layers(config, [*range(13), 15])
    with pytest.raises(ValueError, match="remove whole periods"):
        check_layers(config, [layer for layer in range(16) if layer != 8])
