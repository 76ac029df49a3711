"""The verb ``heal``: a checkpoint in, a checkpoint out, resumable, and one clear line for what cannot be."""

import json
import os
import signal

import pytest
import torch
from heal_command import FEW, healing, one_line
from text_world import word_tokenizer
from world import write_model, write_text

from shoal import heal
from shoal.text.slices import SLICE_SHARES


def test_heals_a_run_folder_and_the_result_is_a_stock_checkpoint(cut, shoal, tmp_path):
    from transformers import AutoModelForCausalLM

    code, out, err = shoal("heal", *healing(cut, "--out", "healed", "--json"))
    assert code == 0, err
    found = json.loads(out)
    assert found["training"]["method"] == "lora" and found["training"]["decided_by"] == "kl"
    healed = tmp_path / "healed"
    model = AutoModelForCausalLM.from_pretrained(healed / "model")
    source = AutoModelForCausalLM.from_pretrained(cut["run"] / "model")
    assert type(model) is type(source) and model.config.use_cache == source.config.use_cache
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in source.named_parameters()]
    names = {path.name for path in healed.iterdir()}
    assert {"model", "adapter", "heal.json", "evaluation.json", "verification.json", "merge.json"} <= names
    written = [path for name in ("model", "adapter") for path in (healed / name).iterdir()]
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in written), "a server is often another user"
    assert "heal" not in names and (healed / "model" / "tokenizer.json").exists()
    card, page = (healed / "model" / "README.md").read_text(), (healed / "report.html").read_text()
    assert "How it healed" in page and 'class="missing"' not in page
    assert f"<bdi>{cut['run'].name}</bdi>, healed</h1>" in page and ">heal.json<" in page
    assert found["before"]["kl"] > 0
    assert "Before and after, on the evaluation slice" in page and "damage repaired (share of the KL)" in page
    assert "lora" in card and "KL to the teacher" in card and "- depth-pruning\n" in card
    assert str(tmp_path) not in card and str(cut["run"].parent) not in card and "base_model" not in card, "a card is for others"
    again = shoal("heal", *healing(cut, "--out", "healed"))
    assert again[0] == 0 and "Healed" in again[1]
    asked = (healed / "heal.request.json").read_bytes()
    code, _, err = shoal("heal", *healing(cut, "--out", "healed", "--tokens", 128))
    one_line(code, err, "healed")
    assert (healed / "heal.request.json").read_bytes() == asked, "what was refused is not what was done"


def test_what_was_healed_heals_on_by_the_same_teacher_and_plan(cut, shoal, tmp_path):
    (tmp_path / "other").symlink_to(cut["teacher"])  # A teacher that the plan does not name.
    code, _, err = shoal("heal", *healing(cut, "--teacher", "other", "--out", "once", "--method", "norms", "--no-speed"))
    assert code == 0, err
    for student in ("once", "once/model"):
        more = ("--text", cut["text"], "--tokens", 256, "--batch", 4, "--length", 16, "--method", "norms", "--no-speed")
        code, _, err = shoal("heal", student, *more, "--out", "twice", "--overwrite")
        assert code == 0, err
        first, second = (json.loads((tmp_path / name / "heal.request.json").read_text()) for name in ("once", "twice"))
        assert first["plan"] is not None and (second["plan"], second["teacher"]) == (first["plan"], "other")


def test_the_adapter_beside_the_student_is_the_healed_model(cut, shoal, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    code, out, err = shoal("heal", *healing(cut, "--out", "apart", "--merge", "apart"))
    assert code == 0 and "Not merged" in out, err
    assert not (tmp_path / "apart" / "model").exists()
    page = (tmp_path / "apart" / "report.html").read_text()
    assert "How it healed" in page and 'class="missing"' not in page
    code, _, err = shoal("heal", *healing(cut, "--out", "apart", "--overwrite"))
    assert code == 0 and "heal:" not in err  # The student is merged another way without training once more.
    ids = torch.arange(3, 15)[None]
    base = AutoModelForCausalLM.from_pretrained(cut["run"] / "model")
    beside = PeftModel.from_pretrained(base, tmp_path / "apart" / "adapter")(input_ids=ids).logits
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "apart" / "model")(input_ids=ids).logits
    torch.testing.assert_close(merged, beside, rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # Five rates are tried; test_heal_training.py tries them on one model.
def test_high_heals_every_weight_at_a_rate_that_it_found(cut, shoal, tmp_path):
    made = ("--text", cut["text"], "--length", 16, "--drop", 2, "--guard", 1, "--repair", "refit", "--no-speed")
    code, _, err = shoal(
        "compress", cut["teacher"], *made, "--effort", "high", "--heal-tokens", 2048, "--out", "run", "--fit-tokens", 1600
    )
    assert code == 0, err
    healed = json.loads((tmp_path / "run" / "heal.json").read_text())
    assert healed["method"] == "full" and healed["objective"] == "forward_kl" and len(healed["rates"]) >= 3
    assert healed["n_trainable"] == healed["n_parameters"]
    best = min(healed["rates"], key=lambda one: one["measure"])
    assert healed["lr"] == best["lr"]
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"fit.safetensors", "cut", "model", "heal.json", "report.html"} <= names
    changed = f"Then healed as one: full, {healed['n_trainable']:,} parameters."
    assert (changed in (tmp_path / "run" / "report.html").read_text()) == (healed["best_step"] > 0)
    assert healed["best_step"] > 0, "a training that changes nothing shows nothing"


def test_text_alone_says_what_it_changed(cut, shoal, tmp_path):
    code, out, err = shoal("heal", *healing(cut, "--out", "out", "--teacher", "none", "--method", "norms", "--json"))
    assert code == 0, err
    drift = json.loads(out)["drift"]
    assert drift["kl"] > 0 and drift["perplexity"] != drift["perplexity_before"]
    assert drift == json.loads((tmp_path / "out" / "drift.json").read_text())
    card, page = (tmp_path / "out" / "model" / "README.md").read_text(), (tmp_path / "out" / "report.html").read_text()
    assert "KL from the student as it came" in card and "- teacher: none" in card
    assert "How it healed" in page and "Before and after" in page and 'class="missing"' not in page
    code, _, err = shoal("report", "out", "--overwrite")
    assert code == 0, err
    again = shoal("heal", *healing(cut, "--out", "out", "--teacher", "none", "--method", "norms"))
    assert again[0] == 0 and "heal:" not in again[2] and "Before and after" in again[1]


def test_a_merge_that_loses_too_much_is_refused_and_the_adapter_kept(cut, shoal, tmp_path, monkeypatch):
    from shoal.train.heal import merge

    monkeypatch.setattr(merge, "apply_masks", lambda model, masks: [p.data.mul_(1.5) for p in model.parameters()])
    text = {"sources": cut["text"], "length": 16}
    healed = heal(cut["run"], tmp_path / "out", teacher=cut["teacher"], text=text, tokens=256, batch=4, rank=2, most_lost=0)
    assert healed.model is None and healed.adapter is not None and healed.evaluation is None
    assert healed.merging.way == "apart" and healed.merging.trials[0].lost > 0


def test_a_training_that_diverges_leaves_no_folder(cut, shoal, tmp_path):
    """Its steps are nothing to go on with; a folder that stood before loses nothing else."""
    asked = healing(cut, "--method", "full", "--out", "healed", "--lr", 1e30)
    code, _, err = shoal("heal", *asked)
    assert code == 2 and "lower --lr" in err and "Traceback" not in err
    assert not (tmp_path / "healed").exists()
    (tmp_path / "healed").mkdir()
    shoal("heal", *asked)
    assert {path.name for path in (tmp_path / "healed").iterdir()} <= {"run.json", "heal.request.json"}


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(("--method", "full"), marks=pytest.mark.slow),
        ("--method", "norms", "--teacher", "none"),
        ("--method", "partial", "--layers", 1, "--objective", "relative_mse", "--boundaries", "every"),
        ("--source", "teacher", "--temperature", 0.8),
        ("--teacher-cache", 8, "--objective", "topk_forward_kl(8)"),
    ],
)
def test_other_ways_to_heal_end_in_a_checkpoint(more, cut, shoal, tmp_path):
    code, out, err = shoal("heal", *healing(cut, "--out", "out", *more))
    assert code == 0, err
    assert (tmp_path / "out" / "model" / "model.safetensors").exists() and "Healed" in out


@pytest.mark.parametrize(
    "more",
    [(), *(pytest.param(("--resident", 1, *more), marks=pytest.mark.slow) for more in ((), ("--teacher-cache", 8)))],
    ids=str,
)
def test_a_killed_healing_goes_on(more, cut, shoal, tmp_path, monkeypatch):
    from shoal.cli.console import Screen

    def stop(self, what, done, total):
        if what.endswith("heal") and done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Screen, "step", stop)
    code, _, err = shoal("heal", *healing(cut, "--out", "out", *more))
    assert code == 130 and "go on" in err
    assert not (tmp_path / "out" / "model").exists()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    code, out, err = shoal("heal", *healing(cut, "--out", "out", *more))
    assert code == 0, err
    code, whole, _ = shoal("heal", *healing(cut, "--out", "whole", *more))
    curves = [json.loads((tmp_path / name / "heal.json").read_text())["curve"] for name in ("out", "whole")]
    assert curves[0] == curves[1]


def test_answers_of_chats_alone_are_predicted(cut, shoal, tmp_path):
    tokenizer = word_tokenizer(40)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'w1 ' if m['role'] == 'user' else 'w2 ' }}{{ m['content'] }} {{ 'w3 ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'w2 ' }}{% endif %}"
    )
    from shoal.train.heal.chats import answer_mask, chat_rows

    talk = [{"role": "user", "content": "w4 w5"}, {"role": "assistant", "content": "w6 w7 w8"}]
    ids, answers = answer_mask(tokenizer, talk * 2, "here")
    said = [tokenizer.decode([one]) for one, is_answer in zip(ids, answers, strict=True) if is_answer]
    assert said == ["w6", "w7", "w8", "w3"] * 2
    assert ids[0] == tokenizer.bos_token_id, "the template spells no start token, and the tokenizer adds one"
    rows = [{"messages": [talk[0], {"role": "assistant", "content": f"w{i % 30 + 4} w{i // 30 + 4}"}]} for i in range(300)]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = chat_rows([str(path)], tokenizer, "training", n=20, length=12)
    assert len(found) == 20 and found.predicted_NT.sum() == 20 * 3
    other = chat_rows([str(path)], tokenizer, "selection", n=20, length=12)
    assert not {tuple(row.tolist()) for row in found.ids_NT} & {tuple(row.tolist()) for row in other.ids_NT}
    with pytest.raises(ValueError, match="no message has the role"):
        answer_mask(tokenizer, talk[:1], "here")


def test_what_answers_are_trained_on_is_in_no_other_slice_of_the_text(tmp_path):
    """Documents of the same file are what a healing is measured on, and what a run chose by."""
    from shoal.text.corpus import open_corpus
    from shoal.train.heal.chats import chat_rows

    tokenizer = word_tokenizer(40)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m['content'] }} {{ 'w3 ' }}{% endfor %}"
    )
    system = {"role": "system", "content": "w2"}  # The template refuses it, and gets it as a part of what the user says.
    rows = [
        [
            *([system] if i % 2 else []),
            {"role": "user", "content": f"w{i % 30 + 4}"},
            {"role": "assistant", "content": f"w{i // 30 + 4}"},
        ]
        for i in range(300)
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    corpus = open_corpus(str(path), tokenizer)

    def documents(name):
        return {tuple(tokenizer(one.text)["input_ids"]) for one in corpus.documents(name)}

    for name in ("training", "selection"):
        found = chat_rows([str(path)], tokenizer, name, n=300, length=12)
        trained = {tuple(row[:n].tolist()) for row, n in zip(found.ids_NT, found.lengths_N, strict=True)}
        assert trained and trained <= documents(name)
        assert not any(trained & documents(other) for other in SLICE_SHARES if other != name)


@pytest.mark.parametrize("teacher", [None, "teacher"])
def test_another_dtype_is_another_healing(teacher, tmp_path):
    """Without a teacher, too: the student computes in what is asked for."""
    from shoal.engine.opening import Opening
    from shoal.recipes.recipe import Recipe, TextChoice
    from shoal.run.healing.heal_bench import HealBench
    from shoal.run.healing.heal_request import HealRequest
    from shoal.run.job import open_inputs
    from shoal.train.heal.config import HealConfig

    student, above = str(write_model(tmp_path / "student", n_layers=3)), str(write_model(tmp_path / "teacher", seed=1))
    text = TextChoice(sources=(str(write_text(tmp_path / "text.jsonl")),), length=16)
    of_student = HealConfig(method="norms", tokens=256, objective="next_token")
    request = HealRequest(student=student, teacher=teacher and above, text=text, heal=of_student)

    def key(dtype):
        inputs = open_inputs(Recipe(model=above if teacher else student, text=text), Opening(dtype=dtype, resident="all"))
        return HealBench(inputs, request, student).key

    assert key("float32") != key("bfloat16")
    assert key("float32") == key("float32")


def test_a_merge_that_lost_too_much_can_be_allowed_and_the_run_goes_on(cut, shoal, tmp_path, monkeypatch):
    """It had recorded the refused merge as done, and asked for --overwrite."""
    recipe = {"model": str(cut["teacher"]), "drop": "2", "guard": 1, "repair": "none", "speed": False}
    recipe["text"] = {"sources": [str(cut["text"])], "length": 16, "samples": 8}
    healing = {"method": "lora", "tokens": 128, "batch": 4, "rank": 2, "lr": 1e-3}
    measure = "shoal.train.heal.merge.measure"
    worse = lambda model, lesson, **how: {"nll": 99.0, "kl": 99.0}  # noqa: E731
    (tmp_path / "r.yaml").write_text(json.dumps({**recipe, "heal": healing}))
    with monkeypatch.context() as patched:
        patched.setattr(measure, worse)
        code, _, err = shoal("run", "r.yaml", "--out", "out")
    one_line(code, err, "raise heal.most_lost")
    (tmp_path / "r.yaml").write_text(json.dumps({**recipe, "heal": {**healing, "most_lost": 100.0}}))
    code, _, err = shoal("run", "r.yaml", "--out", "out")
    assert code == 0, err


@pytest.mark.parametrize(
    "more, said",
    [
        (("--heal", "lorra"), "did you mean 'lora'"),
        (("--effort", "low", "--heal-tokens", 100), "add --heal lora"),
    ],
)
def test_a_run_that_cannot_heal_says_so_before_it_measures(more, said, cut, shoal, tmp_path):
    code, _, err = shoal("compress", cut["teacher"], "--text", cut["text"], "--length", 16, "--out", "run", "--drop", 2, *more)
    assert code == 2 and said in err and "Traceback" not in err
    assert not (tmp_path / "run" / "scan.json").exists()


def test_a_checkpoint_alone_asks_for_its_teacher(cut, shoal, tmp_path, capfd):
    student = write_model(tmp_path / "student", n_layers=4)
    capfd.readouterr()  # Saving a model says this.
    code, _, err = shoal("heal", student, "--text", cut["text"], *FEW, "--out", "out")
    one_line(code, err, "--teacher")
    code, _, err = shoal("heal", student, "--teacher", cut["teacher"], "--text", cut["text"], *FEW, "--out", student / "out")
    one_line(code, err, "overlap")
    code, _, err = shoal(
        "heal",
        student,
        "--teacher",
        cut["teacher"],
        "--text",
        cut["text"],
        *FEW,
        "--out",
        "out",
        "--rank",
        2,
        "--ranks",
        "near_cut",
    )
    one_line(code, err, "--plan")


def test_the_help_names_every_method():
    from typing import get_type_hints

    from shoal.cli.heal_options import TrainedOptions
    from shoal.train.heal.table import TRAINABLE

    text = get_type_hints(TrainedOptions, include_extras=True)["method"].__metadata__[0].help
    assert all(name in text for name in TRAINABLE)
