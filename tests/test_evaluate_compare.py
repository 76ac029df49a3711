"""Laws of a comparison: a teacher loses nothing to itself, and an overlay equals the model of its own."""

import copy

import pytest
import torch
from families import VOCAB, every_family, tiny_model

from shoal.engine.student import TEACHER, Student
from shoal.engine.view import DecoderView
from shoal.evaluate.evaluation import Evaluation, closeness, compare, token_stream
from shoal.evaluate.generate import Generation
from shoal.evaluate.speed import speed
from shoal.measure.oracle import Oracle
from shoal.show.figure_tables import figures
from shoal.show.figure_tables import generations as generations_table
from shoal.words.records import Provenance
from shoal.words.types import Batch, Unit

IDS_BT = torch.randint(3, VOCAB, (4, 9), generator=torch.Generator().manual_seed(3))
MASK_BT = torch.arange(9)[None] < torch.tensor([9, 4, 6, 2])[:, None]
BATCHES = [Batch(IDS_BT[:2]), Batch(IDS_BT[2:].where(MASK_BT[2:], 0), MASK_BT[2:], index=1)]
FROM = Provenance(
    model="tiny",
    model_hash="m",
    data="random tokens",
    data_hash="d",
    n_samples=4,
    n_tokens=26,
    length=9,
    seed=3,
    dtype="float32",
)


def shown(renderable):
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


@pytest.mark.parametrize("family", every_family())
def test_the_teacher_against_itself_loses_nothing(family):
    view = DecoderView(tiny_model(family, n_layers=4))
    itself = [compare(view, other, BATCHES, provenance=FROM) for other in (TEACHER, view, Student())]
    for one in itself:
        assert one.quality.kl == 0.0 and one.quality.agreement == 1.0
        assert one.teacher.perplexity == one.student.perplexity
        assert one.teacher.cost == one.student.cost
    assert itself[0].quality == itself[1].quality == itself[2].quality


def test_an_overlay_equals_the_model_of_its_own():
    model = tiny_model("llama", n_layers=4)
    cut = copy.deepcopy(model)
    del cut.model.layers[1:3]
    cut.config.num_hidden_layers = 2
    view = DecoderView(model)
    overlay = compare(view, Student(frozenset({Unit("layer", 1), Unit("layer", 2)})), BATCHES, provenance=FROM)
    saved = compare(view, DecoderView(cut), BATCHES, provenance=FROM)
    assert overlay == saved
    assert overlay.quality.kl > 0 and overlay.quality.agreement < 1


@pytest.mark.parametrize("own_model", [True, False])
def test_a_plain_cut_is_measured_in_the_pass_of_the_student_and_changes_no_bit_of_it(own_model):
    view, gone = DecoderView(tiny_model("llama", n_layers=4)), frozenset({Unit("layer", 1)})
    student = DecoderView(tiny_model("llama", n_layers=3, seed=1)) if own_model else Student(frozenset({Unit("layer", 2)}))
    alone, both = (closeness(view, student, BATCHES, plain=plain) for plain in (None, Student(gone)))
    assert both.quality == alone.quality and both.by_position == alone.by_position
    assert alone.plain is None and both.plain == Oracle(view, BATCHES).value(gone) != both.quality


def test_defaults_of_the_perplexity_and_of_the_cost():
    view = DecoderView(tiny_model("llama", n_layers=2))
    got = compare(view, TEACHER, BATCHES, provenance=FROM)
    assert (got.teacher.perplexity.window, got.teacher.perplexity.stride, got.teacher.cost.context) == (9, 4, 9)
    assert got.teacher.perplexity.n_tokens == 18 + 6 + 2 - 1
    assert got.quality.n_tokens == 8 + 8 + 5 + 1


@pytest.mark.parametrize("own_model", [False, True])
def test_progress_counts_every_batch_of_every_pass(own_model):
    view = DecoderView(tiny_model("llama", n_layers=2))
    seen = []
    student = view if own_model else TEACHER
    compare(view, student, BATCHES, provenance=FROM, progress=lambda *step: seen.append(step))
    n = 4  # 6 windows of 9 tokens by 4, the last shorter and alone; two at once as in the batches
    total = len(BATCHES) + n * (2 if own_model else 1)
    assert seen == [(done, total) for done in range(total + 1)]


def test_the_stream_is_the_real_tokens_in_order():
    expected = [*IDS_BT[0].tolist(), *IDS_BT[1].tolist(), *IDS_BT[2, :6].tolist(), *IDS_BT[3, :2].tolist()]
    assert token_stream(BATCHES).tolist() == expected


def test_survives_json_with_everything_in_it(tmp_path):
    view, other = (DecoderView(tiny_model("llama", n_layers=n)) for n in (3, 2))
    timed = speed(view, other, prompt_length=4, new_tokens=2, rounds=2, warmup=0)
    said = (Generation(prompt="a", teacher="b [bold]", student="c", n_agreed=1, n_tokens=3),)
    plain, cut = Oracle(view, BATCHES).value({Unit("layer", 1)}), Student(removed=frozenset({Unit("layer", 1)}))
    got = compare(view, other, BATCHES, provenance=FROM, plain=cut, generated=said, timed=timed)
    got.save(tmp_path / "evaluation.json")
    assert Evaluation.load(tmp_path / "evaluation.json") == got
    assert got.speed == timed and got.generations == said and got.plain == plain
    assert {"the same without repair: KL", "the same without repair: agreement"} <= {row[0] for row in figures(got).rows}
    assert f"{plain.kl:.4g}" in shown(figures(got))


def test_an_unknown_key_in_the_file_is_named():
    view = DecoderView(tiny_model("llama", n_layers=2))
    text = compare(view, TEACHER, BATCHES, provenance=FROM).to_json().replace('"agreement"', '"agrement"')
    with pytest.raises(ValueError, match="agreement"):
        Evaluation.from_json(text)


def test_the_table_shows_every_figure():
    view = DecoderView(tiny_model("llama", n_layers=4))
    student = Student(frozenset({Unit("layer", 2)}))
    got = compare(view, student, BATCHES, provenance=FROM, timed=speed(view, view, prompt_length=4, new_tokens=2, rounds=1))
    labels = {row[0].split(",")[0].split(" (")[0] for row in figures(got).rows}
    assert {"layers", "parameters", "weights", "perplexity", "KL to the teacher", "KV cache per token"} <= labels
    text = shown(figures(got))
    for figure in (
        "-25.0 %",
        f"{got.student.perplexity.value:.4g}",
        f"{got.quality.kl:.4g}",
        "bound of decode",
        "random tokens",
    ):
        assert figure in text
    assert [row for row in figures(got).rows if row[0] == "layers"][0][2] == "3"


def test_what_a_model_writes_is_not_markup():
    said = (Generation(prompt="a", teacher="[bold]x", student="[/nothing] y", n_agreed=1, n_tokens=3),)
    text = shown(generations_table(said))
    assert "[bold]x" in text and "[/nothing] y" in text and "1 of 3" in text


def test_one_sample_has_no_standard_error_and_an_infinite_perplexity_is_a_figure():
    view = DecoderView(tiny_model("llama", n_layers=2))
    got = compare(view, TEACHER, [Batch(IDS_BT[:1])], provenance=FROM)
    assert "nan" not in shown(figures(got))
    broken = got.student.perplexity.model_copy(update={"value": float("inf")})
    got = got.model_copy(update={"student": got.student.model_copy(update={"perplexity": broken})})
    assert Evaluation.from_json(got.to_json()).student.perplexity.value == float("inf")
    assert "x inf" in shown(figures(got))


def test_impossible_comparisons_are_refused():
    view = DecoderView(tiny_model("llama", n_layers=2))
    with pytest.raises(ValueError, match="no text"):
        compare(view, TEACHER, [], provenance=FROM)
    other = tiny_model("llama", n_layers=2)
    other.resize_token_embeddings(VOCAB + 3)
    with pytest.raises(ValueError, match=f"the teacher has {VOCAB} tokens, the student {VOCAB + 3}"):
        compare(view, DecoderView(other), BATCHES, provenance=FROM)
