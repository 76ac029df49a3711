"""The research table of criteria: a planted idle layer is everyone's first choice; costs are the oracle's own."""

import math
import sys
from pathlib import Path

import pytest
import torch
from families import tiny_model
from text_world import word_tokenizer
from world import N_WORDS, write_text

from shoal.engine.student import student_without
from shoal.measure.oracle import Oracle

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from criteria import PERPLEXITY, choices_table, compare, jaccard, open_texts, overlap_table

IDLE = 3


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A model whose layer 3 writes nothing into the stream, and two texts."""
    folder = tmp_path_factory.mktemp("criteria")
    model = tiny_model("llama", n_layers=6)
    with torch.no_grad():
        model.model.layers[IDLE].self_attn.o_proj.weight.zero_()
        model.model.layers[IDLE].mlp.down_proj.weight.zero_()
    model.save_pretrained(folder / "model")
    word_tokenizer(N_WORDS).save_pretrained(folder / "model")
    texts = [str(write_text(folder / f"{seed}.jsonl", seed=seed)) for seed in (0, 1)]
    return open_texts(str(folder / "model"), texts, samples=10, length=16)


def test_every_score_of_the_stream_finds_the_idle_layer_on_every_text(inputs):
    found = compare(inputs, 1)
    assert len(found) == 2 * 2 * 5
    for one in found:
        if one.criterion != PERPLEXITY:  # Without any other layer this random model may read random text better.
            assert one.layers == (IDLE,) and one.kl == (0.0, 0.0)


def test_costs_are_the_oracles_and_the_tables_show_every_choice(inputs):
    found = compare(inputs, 2)
    for text, one in enumerate(inputs):
        decided, reported = (Oracle(one.view, one.batches(s)) for s in (one.calibration, one.evaluation))
        for choice in found:
            quality = reported.measure([student_without(choice.layers)])[0]
            assert (choice.kl[text], choice.perplexity[text]) == (quality.kl, quality.perplexity)
        best = next(c for c in found if (c.criterion, c.text, c.shape) == (PERPLEXITY, text, "span"))
        spans = [tuple(range(start, start + 2)) for start in range(4)]
        assert best.layers == min(spans, key=lambda layers: decided.measure([student_without(layers)])[0].nll)
    own = [one for one in found if one.shape == "lowest"]
    assert len(choices_table(own, ["a", "b"]).rows) == len(overlap_table(own).rows) == 10
    with pytest.raises(ValueError, match="1..5"):
        compare(inputs, 6)


def test_jaccard():
    assert jaccard((1, 2), (1, 2)) == 1 and jaccard((1, 2), (3, 4)) == 0 and math.isclose(jaccard((1, 2, 3), (3, 4)), 1 / 4)
