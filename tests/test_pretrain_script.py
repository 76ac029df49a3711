"""The pretraining script learns, resumes bit for bit, and writes a checkpoint that plain transformers opens."""

import importlib.util
import json
import math
import random
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

SCRIPT = Path(__file__).parent.parent / "scripts" / "pretrain_bundled.py"
TINY = (
    "--layers 2 --hidden 32 --ffn 48 --heads 2 --vocab 300 --length 16 --batch 8 --tokens 7680 --lr 1e-2 --device cpu --every 1"
)
N_STEPS = 60


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("pretrain_bundled", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Dataclasses look their module up there.
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Sentences of a small grammar: a model that learns falls far below the loss of a uniform guess."""
    draw = random.Random(0)
    words = ["stone", "river", "winter", "lantern", "harbour", "meadow", "thunder", "orchard", "shadow", "copper"]
    lines = (f"the {draw.choice(words)} and the {draw.choice(words)} were {draw.choice(words)}s.\n" for _ in range(2000))
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def trained(script, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("model")
    return out, script.main(["--text", str(text), "--out", str(out), *TINY.split()])


def test_the_loss_falls_and_is_logged(trained):
    out, loss = trained
    rows = [json.loads(line) for line in (out / "training" / "loss.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, N_STEPS + 1))
    assert abs(rows[0]["loss"] - math.log(300)) < 0.5, "a fresh model guesses uniformly"
    assert loss < 0.6 * rows[0]["loss"]


def test_plain_transformers_opens_the_checkpoint(trained, script, text):
    out, loss = trained
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()) and model.dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids_NT = script.blocks(text.read_text(), tokenizer, length=16)
    held_NT = ids_NT[-round(0.01 * len(ids_NT)) :]
    # The type bf16 keeps 8 bits of each weight; 0.05 nats is some twenty times what that costs here.
    assert script.validation_loss(model, held_NT, batch=8, device="cpu") == pytest.approx(loss, abs=0.05)


def test_stopped_and_resumed_equals_unbroken(trained, script, text, tmp_path):
    out, loss = trained
    call = ["--text", str(text), "--out", str(tmp_path), *TINY.split()]
    script.main([*call, "--stop", "23"])
    assert script.main(call) == loss
    for name in ("model.safetensors", "training/state.safetensors"):
        unbroken, resumed = load_file(out / name), load_file(tmp_path / name)
        assert unbroken.keys() == resumed.keys()
        assert all(torch.equal(unbroken[key], resumed[key]) for key in unbroken)


def test_a_checkpoint_of_other_settings_is_refused(trained, script, text):
    out, _ = trained
    with pytest.raises(ValueError, match="other settings"):
        script.main(["--text", str(text), "--out", str(out), *TINY.replace("--lr 1e-2", "--lr 1e-3").split()])


def test_every_epoch_visits_each_block_once(script):
    ids_NT = torch.arange(24)[:, None]
    training = script.Training(tokens=0, batch=4, lr=1.0, weight_decay=0.0, warmup=0.0, seed=3)
    epochs = [torch.cat([script.batch_at(6 * epoch + step, ids_NT, training) for step in range(6)]) for epoch in range(2)]
    assert all(sorted(e.flatten().tolist()) == list(range(24)) for e in epochs)
    assert not torch.equal(*epochs)


def test_learning_rate_closed_form(script):
    training = script.Training(tokens=0, batch=1, lr=1.0, weight_decay=0.0, warmup=0.1, seed=0)
    rates = [script.learning_rate(step, 100, training) for step in range(101)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == pytest.approx(1.0) and rates[55] == pytest.approx(0.55) and rates[100] == pytest.approx(0.1)


@pytest.mark.parametrize("content, word", [("  \n", "no text"), ("too short a text " * 20, "entries|blocks")])
def test_too_little_text_is_an_error_that_says_so(script, tmp_path, content, word):
    (tmp_path / "t.txt").write_text(content)
    with pytest.raises(ValueError, match=word):
        script.main(["--text", str(tmp_path / "t.txt"), "--out", str(tmp_path / "out"), *TINY.split()])
