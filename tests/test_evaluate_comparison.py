"""Laws of a comparison of many models: the same text and items for all, the first against itself loses nothing."""

import json
import math
import random
import shutil

import pytest
import torch
from families import tiny_model
from text_world import word_tokenizer
from world import N_WORDS, write_model, write_text

from shoal import compare_models, load_recipe
from shoal.engine.open import open_model
from shoal.evaluate.comparison import Comparison
from shoal.evaluate.evaluation import Evaluation, Measured
from shoal.run.asked_tasks import open_tasks
from shoal.run.job import open_inputs
from shoal.show.figure_tables import labels

COMMON = ("--samples", 4, "--length", 16)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_model(folder / "model", n_layers=4)
    write_model(folder / "run" / "model", n_layers=3, seed=1)
    write_text(folder / "text.jsonl")
    draw = random.Random(1)

    def some(n):
        return " ".join(f"w{draw.randrange(N_WORDS)}" for _ in range(n))

    rows = [{"ctx": some(6), "choices": [f" {some(2)}", f" {some(1)}"], "gold": draw.randrange(2)} for _ in range(10)]
    rows.append({"ctx": some(50), "choices": [" w1", " w2"], "gold": 0})
    (folder / "quiz.jsonl").write_text("\n".join(map(json.dumps, rows)))
    stranger = tiny_model("gpt2", n_layers=2, seed=2)  # The models have other words, another family, or a shorter window.
    stranger.config.n_positions = 32
    stranger.transformer.wpe.weight = torch.nn.Parameter(stranger.transformer.wpe.weight[:32].clone())
    stranger.save_pretrained(folder / "stranger")
    word_tokenizer(N_WORDS - 5).save_pretrained(folder / "stranger")
    return folder


@pytest.fixture(scope="module")
def found(world):
    recipe = load_recipe("default", {"text": {"sources": [str(world / "text.jsonl")], "evaluation": 4, "length": 16}})
    tasks = open_tasks([str(world / "quiz.jsonl")])
    names = [str(world / name) for name in ("model", "model", "run", "stranger")]
    return compare_models(names, recipe=recipe, tasks=tasks), recipe


def test_the_first_against_itself_loses_nothing(found):
    first, itself = found[0].models[:2]
    assert (itself.quality.kl, itself.quality.agreement, itself.by_position.acceptance) == (0.0, 1.0, 1.0)
    assert first.figures == itself.figures and first.bits_per_byte == itself.bits_per_byte and first.tasks == itself.tasks
    (task,) = itself.against_first.tasks
    assert (task.stability.stability.low, task.answers.stability.low, task.answers.p_value) == (1.0, 1.0, 1.0)
    assert task.answers.right_to_wrong == task.answers.wrong_to_right == ()
    assert first.quality is None and first.against_first is None and first.why_not is None


def test_figures_are_those_of_eval(found, world, shoal):
    text = ("--text", world / "text.jsonl", *COMMON)
    code, out, _ = shoal("eval", world / "run" / "model", "--teacher", world / "model", *text, "--json")
    pair = Evaluation.from_json(out)
    got = found[0].models[2]
    assert code == 0 and got.quality == pair.quality and got.by_position == pair.by_position
    assert (got.figures.perplexity, got.figures.cost) == (pair.student.perplexity, pair.student.cost)
    assert found[0].models[0].figures.perplexity == pair.teacher.perplexity
    code, out, _ = shoal("eval", world / "run" / "model", *text, "--task", world / "quiz.jsonl", "--json")
    # Its own window is longer than the shortest of all, so one context is whole there.
    alone = Measured.from_json(out).tasks[0]
    assert (alone.facts.n_truncated, got.tasks[0].facts.n_truncated) == (0, 1)
    assert {one.tasks[0].facts.n_truncated for one in found[0].models} == {1}


def test_another_vocabulary_has_bits_per_byte_and_no_kl(found, world):
    comparison, recipe = found
    stranger = comparison.models[3]
    assert stranger.quality is None and stranger.by_position is None and "its tokenizer is another" in stranger.why_not
    inputs = open_inputs(recipe.model_copy(update={"model": str(world / "model")}))
    rows = inputs.evaluation.ids_NT
    texts = [inputs.opened.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    assert comparison.n_bytes == sum(len(text.encode()) for text in texts)
    opened = open_model(world / "stranger")
    stream = [token for text in texts for token in opened.tokenizer(text, add_special_tokens=False)["input_ids"]]
    nats, done = 0.0, 0  # Windows of BOS and 15 tokens begin every 8; each token is scored once, in the first window it is in.
    for start in range(0, len(stream), 8):
        window = [opened.tokenizer.bos_token_id, *stream[start : start + 15]]
        with torch.no_grad():
            logp_TV = opened.model(torch.tensor([window])).logits[0].double().log_softmax(-1)
        for at in range(max(done, start), start + len(window) - 1):
            nats -= float(logp_TV[at - start, stream[at]])
        done = max(done, start + len(window) - 1)
    assert stranger.figures.perplexity.n_tokens == len(stream)
    assert stranger.bits_per_byte == pytest.approx(nats / math.log(2) / comparison.n_bytes, rel=1e-5)


def test_survives_json(found):
    assert Comparison.from_json(found[0].to_json()) == found[0]


def test_the_verb_prints_one_table(world, shoal, found):
    models = [world / name for name in ("model", "run", "stranger")]
    code, out, err = shoal(
        "compare", *models, "--text", world / "text.jsonl", *COMMON, "--task", world / "quiz.jsonl", "--json"
    )
    assert code == 0, err
    got = Comparison.from_json(out)
    assert got.models[1:] == found[0].models[2:]
    for said in (
        "bits per byte",
        "KL to the first",
        "stability against the first, mean_nll",
        "stranger: no KL",
        "1 of 11 contexts cut",
    ):
        assert said in err, said


def test_the_shortest_window_holds_for_all(world, shoal):
    models = [world / name for name in ("model", "stranger")]
    text = ("--text", world / "text.jsonl", "--samples", 2)
    code, _, err = shoal("compare", *models, *text, "--length", 33)
    assert code == 2 and "--length 33 is longer than the shortest window of these models, 32" in err
    code, out, _ = shoal("compare", *models, *text, "--json")
    assert code == 0 and Comparison.from_json(out).provenance.length == 32


def test_what_cannot_be_compared_is_one_line(world, shoal, tmp_path):
    shutil.copytree(world / "model", tmp_path / "mute")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "mute" / name).unlink()
    for args, said in (
        ((world / "model",), "compare got 1 model(s), needs at least 2"),
        ((world / "model", "nowhere/at/all"), "no such model folder"),
        ((world / "model", "mute"), "has no tokenizer files"),
        ((world / "model", world / "run", "--shots", 2), "give --task as well"),
    ):
        code, out, err = shoal("compare", *args, "--text", world / "text.jsonl", *COMMON)
        assert code == 2 and said in err.strip().splitlines()[-1] and "Traceback" not in err


def test_eval_refuses_a_student_of_other_tokens(world, shoal, tmp_path):
    """Equal numbers of tokens do not make them the same tokens, and a student may read less at a time."""
    narrow = tiny_model("gpt2", n_layers=2)
    narrow.config.n_positions = 8
    narrow.transformer.wpe.weight = torch.nn.Parameter(narrow.transformer.wpe.weight[:8].clone())
    narrow.save_pretrained(tmp_path / "narrow")
    word_tokenizer(N_WORDS).save_pretrained(tmp_path / "narrow")
    for student, said in (
        (world / "stranger", "its tokenizer is another"),
        (tmp_path / "narrow", "give --length 8 or less"),
    ):
        code, _, err = shoal("eval", student, "--teacher", world / "model", "--text", world / "text.jsonl", *COMMON)
        assert code == 2 and said in err.strip().splitlines()[-1] and "Traceback" not in err


def test_no_flips_are_said_in_a_line(world, shoal):
    text = ("--text", world / "text.jsonl", *COMMON, "--task", world / "quiz.jsonl")
    code, out, _ = shoal("eval", world / "model", "--teacher", world / "model", *text)
    assert code == 0 and "No flips" in out and "in brackets" not in out


def test_other_numbers_of_logits_are_said(world, tmp_path):
    model = tiny_model("llama", n_layers=2)
    model.resize_token_embeddings(70)
    model.save_pretrained(tmp_path / "padded")
    word_tokenizer(N_WORDS).save_pretrained(tmp_path / "padded")
    recipe = load_recipe("default", {"text": {"sources": [str(world / "text.jsonl")], "evaluation": 2, "length": 16}})
    got = compare_models([str(world / "model"), str(tmp_path / "padded")], recipe=recipe).models[1]
    assert got.why_not == "it has 70 logits, the first model 61" and got.quality is None


def test_names_are_short_and_differ():
    assert labels(["a/x", "b/y"]) == ["x", "y"]
    assert labels(["a/x", "b/x", "c"]) == ["a/x", "b/x", "c"]
    assert labels(["a/x", "a/x"]) == ["a/x (1)", "a/x (2)"]
