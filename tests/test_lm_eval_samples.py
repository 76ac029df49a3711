"""Samples of lm-eval as they are read: gold answers, filters, what cannot be compared."""

import pytest

from shoal.evaluate.tasks.benchmark import compare_tasks, task_figures
from shoal.evaluate.tasks.lm_eval_tasks import answers_of_samples

pytest.importorskip("lm_eval")
pytest.importorskip("datasets")


def sample(doc_id=0, **fields):
    arguments = [("w1", " w2"), ("w1", " w3")]
    plain = dict(doc_id=doc_id, doc={"q": doc_id}, target=1, arguments=arguments, filter="none", metrics=["acc"], acc=1.0)
    hashes = dict(doc_hash=f"d{doc_id}", prompt_hash="p", target_hash="t")
    return plain | hashes | dict(filtered_resps=[(-2.0, False), (-1.0, False)]) | fields


def read(*rows, output="multiple_choice"):
    return answers_of_samples(rows, "quiz", output, means={}, cut=set())


def test_a_task_that_accepts_several_options_has_one_gold_for_every_model():
    """Two golds: a model that takes either is right, and items still match between models."""
    first, second, neither = (
        read(sample(target=[0, 1], filtered_resps=values, arguments=[("w1", f" w{n}") for n in range(3)], acc=acc))
        for values, acc in (
            ([(-1.0, False), (-2.0, False), (-3.0, False)], 1.0),
            ([(-2.0, False), (-1.0, False), (-3.0, False)], 1.0),
            ([(-2.0, False), (-3.0, False), (-1.0, False)], 0.0),
        )
    )
    assert [one.counted.items[0].is_right for one in (first, second, neither)] == [True, True, False]
    assert compare_tasks([first], [second]).tasks[0].student.value == 1.0
    assert compare_tasks([first], [neither]).tasks[0].student.value == 0.0
    as_text = read(sample(target="w3"))
    assert as_text.counted.items[0].gold == 1 and as_text.counted.items[0].is_right
    odd = read(sample(target="odd", filtered_resps=[(-1.0, False), (-2.0, False)], acc=0.0))
    assert not odd.counted.items[0].is_right


def test_of_several_filters_the_first_counts():
    rows = [
        sample(
            n, arguments=[("w1", {"until": []})], filter=name, filtered_resps=["5"], metrics=["exact_match"], exact_match=value
        )
        for name, value in (("strict", 0.0), ("flexible", 1.0))
        for n in (0, 1)
    ]
    got = read(*rows, output="generate_until")
    assert (got.facts.metric, task_figures(got).accuracy.value, len(got.counted.items)) == ("exact_match, strict", 0.0, 2)


@pytest.mark.parametrize(
    ("row", "output", "said"),
    [
        ({"metrics": ["f1"], "f1": 0.5}, "multiple_choice", "no accuracy per item, only f1; needed: acc or exact_match"),
        ({"acc": 0.5}, "multiple_choice", "gives acc 0.5 to an item"),
        ({}, "loglikelihood_rolling", "measures loglikelihood_rolling, not answers"),
        ({"filtered_resps": [(float("nan"), False), (-1.0, False)]}, "multiple_choice", "are not finite"),
    ],
)
def test_what_cannot_be_compared_is_one_clear_line(row, output, said):
    with pytest.raises(ValueError, match=said):
        read(sample(**row), output=output)
    with pytest.raises(ValueError, match="has no items"):
        read()
