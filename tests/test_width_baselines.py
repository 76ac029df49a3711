"""The structured width methods that the benchmark compares with: identities, closed forms, and counts of parameters."""

import sys
from pathlib import Path

import pytest
import torch
from families import VOCAB, tiny_model

from shoal.engine.view import DecoderView
from shoal.evaluate.evaluation import closeness
from shoal.text.samples import Samples

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from width_baselines import pruned_layers, sliced, sliced_parameters, taylor_groups, width_for


def batches(n=12):
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 11, (n,), generator=draw)
    return Samples(torch.randint(3, VOCAB, (n, 10), generator=draw), lengths, "calibration", "ids", "hash", 0).batches(4)


def test_slicing_nothing_is_the_model_and_slicing_more_loses_more():
    model = tiny_model("llama", n_layers=3)
    view, text = DecoderView(model), batches()
    lost = [closeness(view, DecoderView(sliced(model, text, kept)), text)[0].kl for kept in (32, 30, 24, 12)]
    assert lost[0] < 1e-9 and lost == sorted(lost)


def test_a_stream_of_low_rank_is_sliced_without_loss():
    """Everything is written into 20 directions: slicing to 20 keeps the logits."""
    model = tiny_model("llama", n_layers=3)
    basis = torch.linalg.qr(torch.randn(32, 20, generator=torch.Generator().manual_seed(1)))[0]
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ basis @ basis.mT)
        for layer in model.model.layers:
            for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
                writer.weight.copy_(basis @ basis.mT @ writer.weight)
    view, text = DecoderView(model), batches()
    same, less = (closeness(view, DecoderView(sliced(model, text, kept)), text)[0].kl for kept in (20, 16))
    assert same < 1e-6 < 1e-4 < less  # The basis is of fp32 states, so logits are right to some 1e-4.


def test_the_sliced_model_has_the_parameters_of_its_parts():
    """At full width: the model's own, two shortcuts in every layer, and a second embedding; norms are folded."""
    model = tiny_model("llama", n_layers=3)
    own = sum(one.numel() for name, one in model.named_parameters() if "norm" not in name and "lm_head" not in name)
    assert sliced_parameters(model.config, 32) == own + VOCAB * 32 + 3 * 2 * 32**2
    kept = width_for(model.config, own)
    assert sliced_parameters(model.config, kept) <= own < sliced_parameters(model.config, kept + 1)
    with pytest.raises(ValueError, match="no slicing"):
        width_for(model.config, 10)


def test_taylor_groups_are_the_lowest_sums_of_weight_times_gradient():
    model, text = tiny_model("llama", n_layers=4), batches()
    student, gone = taylor_groups(model, text, 0.5)
    assert sorted(student.overrides) == list(pruned_layers(4)) == [1, 2]
    loss, n = 0.0, 0
    for batch in text:
        logits = model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT.long()).logits[:, :-1]
        real = batch.mask_BT[:, 1:].bool()
        loss = loss + torch.nn.functional.cross_entropy(logits[real], batch.ids_BT[:, 1:][real], reduction="sum")
        n += int(real.sum())
    (loss / n).backward()
    mlp, attention = model.model.layers[1].mlp, model.model.layers[1].self_attn
    each = {
        name: (one.weight * one.weight.grad).abs()
        for name, one in (*mlp.named_children(), *attention.named_children())
        if hasattr(one, "weight")
    }
    scores = [float(each["gate_proj"][f].sum() + each["up_proj"][f].sum() + each["down_proj"][:, f].sum()) for f in range(48)]
    down = student.overrides[1]["mlp.down_proj.weight"]
    assert {f for f in range(48) if not down[:, f].any()} == set(sorted(range(48), key=scores.__getitem__)[:24])
    groups = [
        float(
            each["q_proj"][16 * g : 16 * g + 16].sum() + each["k_proj"][8 * g : 8 * g + 8].sum()
            + each["v_proj"][8 * g : 8 * g + 8].sum() + each["o_proj"][:, 16 * g : 16 * g + 16].sum()
        )
        for g in range(2)
    ]  # fmt: skip
    weak = min(range(2), key=groups.__getitem__)
    output = student.overrides[1]["self_attn.o_proj.weight"]
    assert not output[:, 16 * weak : 16 * weak + 16].any() and output[:, 16 * (1 - weak) : 16 * (1 - weak) + 16].any()
    per_group = sum(one.weight.numel() for one in attention.children() if hasattr(one, "weight")) // 2
    assert gone == 2 * (24 * 3 * 32 + per_group)
