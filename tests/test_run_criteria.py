"""Criteria compared: a planted idle layer is everyone's first choice; costs and perplexities are the oracle's own."""

import json
import math

import pytest
import torch
from families import tiny_model
from text_world import word_tokenizer
from world import N_WORDS, write_text

from shoal import load_recipe
from shoal.engine.student import student_without
from shoal.evaluate.criteria import CriteriaComparison, choices_table, jaccard, overlap_table
from shoal.measure.oracle import Oracle
from shoal.run.criteria import compare_criteria
from shoal.run.job import open_inputs

IDLE = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model whose layer 3 writes nothing into the stream, and two texts."""
    folder = tmp_path_factory.mktemp("criteria")
    model = tiny_model("llama", n_layers=6)
    with torch.no_grad():
        model.model.layers[IDLE].self_attn.o_proj.weight.zero_()
        model.model.layers[IDLE].mlp.down_proj.weight.zero_()
    model.save_pretrained(folder / "model")
    word_tokenizer(N_WORDS).save_pretrained(folder / "model")
    return str(folder / "model"), [str(write_text(folder / f"{seed}.jsonl", seed=seed)) for seed in (0, 1)]


def recipe(world, drop, text=None):
    changes = {"samples": 10, "length": 16, "evaluation": 8, **({"sources": [text]} if text else {})}
    return load_recipe("default", {"model": world[0], "drop": drop, "replace": "none", "text": changes})


def test_every_score_of_the_stream_finds_the_idle_layer_on_every_text(world):
    found = compare_criteria(recipe(world, "1"), world[1])
    assert len(found.choices) == 2 * 2 * 5 and found.n == 1 and len(found.read) == 2
    for one in found.choices:
        if one.criterion != "perplexity":  # without any other layer this random model may read random text better
            assert one.layers == (IDLE,) and one.kl == (0.0, 0.0) and one.perplexity == found.teacher_perplexity
    assert found.read[0].data_hash != found.read[1].data_hash != found.measured[1].data_hash


def test_figures_are_the_oracles(world):
    found = compare_criteria(recipe(world, "2"), world[1])
    assert CriteriaComparison.from_json(found.to_json()) == found
    for corpus, text in enumerate(world[1]):
        inputs = open_inputs(recipe(world, "2", text))
        decided, reported = (Oracle(inputs.view, inputs.batches(s)) for s in (inputs.calibration, inputs.evaluation))
        for one in found.choices:
            quality = reported.measure([student_without(one.layers)])[0]
            assert (one.kl[corpus], one.perplexity[corpus]) == (quality.kl, quality.perplexity)
        best = next(one for one in found.choices if (one.criterion, one.corpus, one.shape) == ("perplexity", corpus, "span"))
        spans = [tuple(range(start, start + 2)) for start in range(1, 4)]
        assert best.layers == min(spans, key=lambda layers: decided.measure([student_without(layers)])[0].nll)
        assert best.score == decided.measure([student_without(best.layers)])[0].nll


def test_jaccard():
    assert jaccard((1, 2), (1, 2)) == 1 and jaccard((1, 2), (3, 4)) == 0 and math.isclose(jaccard((1, 2, 3), (3, 4)), 1 / 4)


def test_tables_show_every_choice(world):
    found = compare_criteria(recipe(world, "2"), world[1])
    assert choices_table(found).row_count == len(found.choices)
    for shape in ("span", "lowest"):
        assert overlap_table(found, shape).row_count == len(found.of_shape(shape)) == 10


def test_the_command(shoal, world):
    model, texts = world
    options = ("--drop", "2", "--samples", 10, "--length", 16, "--json", "--text", texts[0], "--text", texts[1])
    code, out, err = shoal("criteria", model, *options)
    assert code == 0 and CriteriaComparison.model_validate(json.loads(out)).n == 2, err
    assert "Overlap of contiguous spans" in err and "angular/last" in err


@pytest.mark.parametrize(
    ("more", "said"),
    [(("--drop", "9"), "this model allows 1..4"), (("--text", "nowhere.txt"), "nowhere.txt"), (("--drop", "x"), "--drop 'x'")],
)
def test_mistakes_get_one_line(shoal, world, more, said):
    text = () if "--text" in more else ("--text", world[1][0])
    code, _, err = shoal("criteria", world[0], "--samples", 10, "--length", 16, *text, *more)
    assert code == 2 and said in err.strip().splitlines()[-1] and len(err.strip().splitlines()) == 1, err
