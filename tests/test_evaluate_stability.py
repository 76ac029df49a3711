"""Laws of stability: the definition written out, self-comparison, order, flips, intervals that cover, files of other tools."""

import json
import math

import numpy as np
import pytest

from shoal.evaluate.intervals import Interval, bootstrap, mean, resampled_sums, share_of, sign_test
from shoal.evaluate.stability import Answer, Answers, Stability, official_stability, option_kl, stability
from shoal.evaluate.tasks.answer_files import load_answers
from shoal.show.task_tables import stability_notes

FEW = {"n_resamples": 50}


def answers_of(*rows, variant="mean_nll", task="quiz"):
    """Rows of (gold, scores); the lowest score is chosen."""
    items = (
        Answer(f"k{n}", f"item {n}", int(gold), int(np.argmin(scores)), tuple(map(float, scores)))
        for n, (gold, scores) in enumerate(rows)
    )
    return Answers(task, variant, tuple(items))


def random_pair(n, *, seed=0, n_options=4, noise=0.3):
    draw = np.random.default_rng(seed)
    ours = draw.gamma(8.0, 0.4, (n, n_options))
    theirs = ours + noise * draw.normal(size=ours.shape)
    gold = draw.integers(0, n_options, n)
    return answers_of(*zip(gold, ours, strict=True)), answers_of(*zip(gold, theirs, strict=True))


def turned(answers, order):
    return Answers(answers.task, answers.variant, tuple(answers.items[i] for i in order))


def test_the_definition_by_hand():
    teacher = answers_of((0, [1.0, 3.0]), (1, [2.0, 2.5]), (0, [4.0, 1.0]))
    student = answers_of((0, [1.0, 2.0]), (1, [2.6, 2.5]), (0, [1.5, 1.6]))
    weights = [math.exp(s) for s in (1.0, 0.25, 1.5)]  # Half the distance of two options is their standard deviation.
    got = stability(teacher, student, **FEW)
    # Teacher and student are right, right; wrong, right; wrong, right.
    assert got.stability.value == pytest.approx(weights[0] / sum(weights))
    assert got.correctness.value == pytest.approx(1 / 3)
    assert got.answers.value == pytest.approx(1 / 3)
    assert (got.teacher_accuracy.value, got.student_accuracy.value) == pytest.approx((1 / 3, 1.0))
    assert got.effective_items == pytest.approx(sum(weights) ** 2 / sum(w * w for w in weights))
    # The surest item comes first.
    assert got.right_to_wrong == () and [flip.key for flip in got.wrong_to_right] == ["k2", "k1"]
    assert got.wrong_to_right[0].teacher_scores == (4.0, 1.0) and got.wrong_to_right[0].student_scores == (1.5, 1.6)


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_definition_written_as_loops(seed):
    teacher, student = random_pair(60, seed=seed, n_options=2 + seed)
    total = sum(math.exp(np.std(a.scores)) for a in teacher.items)
    agreed = [a.is_right == b.is_right for a, b in zip(teacher.items, student.items, strict=True)]
    expected = sum(math.exp(np.std(a.scores)) / total for a, yes in zip(teacher.items, agreed, strict=True) if yes)
    got = stability(teacher, student, **FEW)
    assert got.stability.value == pytest.approx(expected, rel=1e-12)
    assert got.correctness.value == pytest.approx(sum(agreed) / 60)
    gained = len(got.wrong_to_right) - len(got.right_to_wrong)
    assert got.student_accuracy.value - got.teacher_accuracy.value == pytest.approx(gained / 60)
    assert len(got.wrong_to_right) + len(got.right_to_wrong) == 60 - sum(agreed)


@pytest.mark.parametrize("variant", ["mean_nll", "option_nll"])
def test_the_teacher_against_itself_is_stable(variant):
    teacher = answers_of(*((a.gold, a.scores) for a in random_pair(50)[0].items), variant=variant)
    got = stability(teacher, teacher, **FEW)
    for figure in (got.stability, got.correctness, got.answers):
        assert (figure.value, figure.low, figure.high) == (1.0, 1.0, 1.0)
    assert (got.kl.value, got.kl.low, got.kl.high) == (0.0, 0.0, 0.0)
    assert got.right_to_wrong == got.wrong_to_right == () and got.p_value == 1.0


def test_correctness_agrees_where_two_wrong_answers_differ():
    got = stability(answers_of((0, [3, 1, 2])), answers_of((0, [3, 2, 1])), **FEW)
    assert got.correctness.value == got.stability.value == 1.0 and got.answers.value == 0.0


def test_perplexities_by_mistake_do_not_overflow():
    got = stability(answers_of((0, [1, 1e5]), (0, [1, 2])), answers_of((0, [1, 1e5]), (0, [2, 1])), **FEW)
    assert got.stability.value == 1.0 and got.correctness.value == 0.5 and got.effective_items == pytest.approx(1.0)


def test_weights_that_rest_on_one_item_are_said_aloud():
    wide = [(0, [1.0, 40.0 + 10 * n]) for n in range(20)]
    (note,) = stability_notes([stability(answers_of(*wide), answers_of(*wide), **FEW)])
    assert "the weights are those of" in note and "of 20 items" in note
    assert stability_notes([stability(*random_pair(20), **FEW)]) == []


def test_the_order_of_the_items_changes_no_bit():
    teacher, student = random_pair(40)
    order = np.random.default_rng(5).permutation(40)
    assert stability(teacher, student) == stability(turned(teacher, order), turned(student, order[::-1]))


def test_items_that_come_twice_are_matched_one_to_one():
    teacher, student = random_pair(10)
    double = turned(teacher, [*range(10), 3]), turned(student, [3, *range(10)])
    assert stability(*double, **FEW).n_items == 11
    with pytest.raises(ValueError, match="11 items of the teacher, 10 of the student, some of them more than once"):
        stability(double[0], student)


def test_kl_between_options_is_that_of_the_softmax():
    p, q = (np.exp(-np.array(x)) / np.exp(-np.array(x)).sum() for x in ((1.0, 2.0, 0.5), (2.0, 0.3, 0.4)))
    assert option_kl((1.0, 2.0, 0.5), (2.0, 0.3, 0.4)) == pytest.approx(float((p * np.log(p / q)).sum()))
    assert option_kl((1e4, 0.0), (1e4, 0.0)) == 0.0
    assert option_kl((1.0, 2.0), (501.0, 502.0)) == pytest.approx(0.0, abs=1e-12)  # A constant changes no probability.


def test_the_official_number_is_the_first_m_weights_in_file_order():
    teacher, student = random_pair(30)
    agreed = sum(a.is_right == b.is_right for a, b in zip(teacher.items, student.items, strict=True))
    weights = np.exp([np.std(a.scores) for a in teacher.items])
    assert official_stability(teacher, student) == pytest.approx(weights[:agreed].sum() / weights.sum(), rel=1e-12)


def test_the_official_number_depends_on_the_order_and_the_definition_does_not():
    teacher, student = random_pair(100, noise=1.0)
    by_weight = np.argsort([np.std(a.scores) for a in teacher.items])
    numbers = [official_stability(turned(teacher, o), turned(student, o)) for o in (by_weight, by_weight[::-1])]
    ours = [stability(turned(teacher, o), turned(student, o), **FEW).stability for o in (by_weight, by_weight[::-1])]
    assert numbers[0] < ours[0].value < numbers[1] and ours[0] == ours[1]
    with pytest.raises(ValueError, match="the same items in one order"):
        official_stability(teacher, turned(student, by_weight))


def test_other_items_variants_options_and_nan_are_refused_in_one_line():
    teacher, student = random_pair(10)
    with pytest.raises(ValueError, match="10 items of the teacher, 8 of the student, 2 only with the teacher and 0 only"):
        stability(teacher, turned(student, range(2, 10)))
    with pytest.raises(ValueError, match="the teacher's scores are mean_nll, the student's option_nll"):
        stability(teacher, answers_of((0, [1, 2]), variant="option_nll"))
    with pytest.raises(ValueError, match="gold 0 of 2 options for the teacher, 1 of 2 for the student"):
        stability(answers_of((0, [1, 2])), answers_of((1, [1, 2])))
    with pytest.raises(ValueError, match="item 1 .*not finite"):
        answers_of((0, [1, 2]), (0, [1, math.nan]))
    with pytest.raises(ValueError, match="gold 2 is not one of 2 options"):
        answers_of((2, [1, 2]))
    with pytest.raises(ValueError, match="no items"):
        answers_of()


def test_survives_json():
    got = stability(*random_pair(30), **FEW)
    assert Stability.from_json(got.to_json()) == got


# -- intervals ---------------------------------------------------------------------------------------------------------


def test_the_seed_decides_the_interval():
    pair = random_pair(50)
    assert stability(*pair, seed=1) == stability(*pair, seed=1)
    assert stability(*pair, seed=1).stability != stability(*pair, seed=2).stability


def test_resampled_sums_have_the_mean_and_spread_of_sampling():
    column_N = np.random.default_rng(0).normal(size=80)
    sums_R = resampled_sums(np.stack([column_N, np.ones(80)], axis=1), n_resamples=4000, seed=3)
    assert (sums_R[:, 1] == 80).all()
    # Over 4000 draws the standard errors are 1.6 % of the spread for the mean, and 1.1 % for the spread itself.
    spread = math.sqrt(80) * column_N.std()
    assert sums_R[:, 0].mean() == pytest.approx(column_N.sum(), abs=0.07 * spread)
    assert sums_R[:, 0].std() == pytest.approx(spread, rel=0.05)


@pytest.mark.parametrize("truth", [0.5, 0.8])
def test_the_interval_covers_the_truth_as_often_as_it_says(truth):
    """400 studies of 150 items: the share of intervals with the truth in them; 95 % is asked, 1.1 % is one standard error."""
    draw = np.random.default_rng(7)
    covered = 0
    for study in range(400):
        right_N = (draw.random(150) < truth).astype(float)
        found = bootstrap(np.stack([right_N, np.ones(150)], axis=1), mean, n_resamples=300, seed=study)
        covered += found.low <= truth <= found.high
    assert 0.91 <= covered / 400 <= 0.98


@pytest.mark.parametrize("truth", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("n_items", [1, 5, 20, 50])
def test_the_interval_of_a_share_covers_it_for_few_items_and_rare_answers(truth, n_items):
    """Every possible result, weighted by its probability; a plain percentile bootstrap covers 2 % of one item in 0 % of cases.

    The exact bound at both ends covers at least 95 %, the bootstrap between them near 95 %: 92.5 % leaves room for its grid.
    """
    covered = 0.0
    for k in range(n_items + 1):
        found = share_of(np.arange(n_items) < k, n_resamples=1000)
        covered += math.comb(n_items, k) * truth**k * (1 - truth) ** (n_items - k) * (found.low <= truth <= found.high)
    assert covered >= 0.925


def test_all_alike_has_the_exact_bound_on_the_side_that_resampling_cannot_see():
    none, every = share_of(np.zeros(200)), share_of(np.ones(3))
    assert (none.low, every.high) == (0.0, 1.0)
    assert (1 - none.high) ** 200 == pytest.approx(0.025) and every.low**3 == pytest.approx(0.025)


@pytest.mark.slow
def test_the_interval_of_stability_covers_the_stability_of_the_population():
    """Studies of 120 items out of 20,000; the truth is the stability of them all."""
    teacher, student = random_pair(20_000, noise=0.6)
    weights = np.exp([np.std(a.scores) for a in teacher.items])
    agreed = np.array([a.is_right == b.is_right for a, b in zip(teacher.items, student.items, strict=True)])
    truth = float((weights * agreed).sum() / weights.sum())
    draw = np.random.default_rng(1)
    covered = 0
    for study in range(200):
        chosen = draw.choice(20_000, 120, replace=False)
        found = stability(turned(teacher, chosen), turned(student, chosen), n_resamples=200, seed=study).stability
        covered += found.low <= truth <= found.high
    assert 0.89 <= covered / 200 <= 0.99  # One standard error is 1.5 %.


def test_figures_that_do_not_exist_in_some_draws_have_an_interval_and_in_none_have_nan():
    some = bootstrap(np.array([[1.0, 1.0], [0.0, 0.0]]), mean, n_resamples=100)
    assert (some.value, some.low, some.high) == (1.0, 1.0, 1.0)
    none = bootstrap(np.zeros((3, 2)), mean, n_resamples=10)
    assert math.isnan(none.low) and math.isnan(none.high)
    with pytest.raises(ValueError, match="a bootstrap needs items"):
        bootstrap(np.zeros((0, 2)), mean)
    assert str(Interval(value=0.5, low=0.25, high=0.75)) == "0.5 (0.25 to 0.75)"


def test_the_sign_test_is_the_binomial_by_enumeration():
    for lost in range(6):
        for won in range(6):
            n = lost + won
            extreme = [k for k in range(n + 1) if abs(k - n / 2) >= abs(lost - n / 2)]
            assert sign_test(lost, won) == pytest.approx(sum(math.comb(n, k) for k in extreme) / 2**n)


# -- files of other evaluators -----------------------------------------------------------------------------------------


def opencompass(folder, answers, *, inputs=True):
    folder.mkdir(parents=True, exist_ok=True)
    labels, content = "ABCDEFGH", {}
    for number, item in enumerate(answers.items):
        row = {f"label: {labels[j]}": {"PPL": score} for j, score in enumerate(item.scores)}
        if inputs:
            for j, option in enumerate(row.values()):
                option["testing input"] = f"{item.text} option {j}"
        content[str(number)] = {**row, "prediction": labels[item.chosen], "gold": labels[item.gold]}
    (folder / f"{answers.task}.json").write_text(json.dumps(content))
    return folder


def sample_log(folder, answers, *, as_text=True):
    """As lm-eval writes it: numbers as texts (0.4.13) or as numbers (older)."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, item in enumerate(answers.items):
        options = [[str(-s), "False"] if as_text else [-s, False] for s in item.scores]
        target = str(item.gold) if as_text else item.gold
        rows.append(
            {"doc_id": number, "doc": {"q": item.text}, "target": target, "filtered_resps": options, "doc_hash": item.key}
        )
    path = folder / f"samples_{answers.task}_2026-11-22T10-11-12.123456.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def figures(found):
    return found.stability.value, found.correctness.value, found.answers.value, found.kl.value, found.effective_items


@pytest.mark.parametrize("inputs", [True, False])
def test_opencompass_folders_give_the_same_numbers(tmp_path, inputs):
    teacher, student = random_pair(20)
    ours, theirs = (opencompass(tmp_path / who, a, inputs=inputs) for who, a in (("t", teacher), ("s", student)))
    a, b = load_answers(ours)["quiz"], load_answers(theirs)["quiz"]
    assert a.variant == "mean_nll"
    got, expected = stability(a, b, **FEW), stability(teacher, student, **FEW)
    assert figures(got) == pytest.approx(figures(expected), rel=1e-12)
    assert len(got.right_to_wrong) == len(expected.right_to_wrong)
    assert official_stability(a, b) == official_stability(teacher, student)


@pytest.mark.parametrize("as_text", [True, False])
def test_sample_logs_are_the_variant_of_the_option_alone(tmp_path, as_text):
    teacher, student = (answers_of(*((a.gold, a.scores) for a in one.items), variant="option_nll") for one in random_pair(20))
    order = np.random.default_rng(2).permutation(20)
    ours = sample_log(tmp_path / "t" / "model", teacher, as_text=as_text)
    theirs = sample_log(tmp_path / "s" / "model", turned(student, order), as_text=as_text)
    a, b = (load_answers(folder.parent)["quiz"] for folder in (ours, theirs))
    assert a.variant == b.variant == "option_nll"
    got, expected = stability(a, b, **FEW), stability(teacher, student, **FEW)
    assert figures(got) == pytest.approx(figures(expected), rel=1e-12)


def wrong_predictions(change):
    def write(folder):
        path = opencompass(folder, random_pair(3)[0]) / "quiz.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps(change(content)))

    return write


def changed(row, **fields):
    return {**row, "1": {**{k: v for k, v in row["1"].items() if k not in fields}, **{k: v for k, v in fields.items() if v}}}


WRONG = {
    "no gold": (wrong_predictions(lambda c: changed(c, gold=None)), "item '1': 'gold' is missing"),
    "gold of no label": (wrong_predictions(lambda c: changed(c, gold="Q")), "item '1': gold 'Q' is not one of the labels A, B"),
    "no PPL": (wrong_predictions(lambda c: changed(c, **{"label: B": {"x": 1}})), "label 'B' has no number 'PPL'"),
    "NaN": (wrong_predictions(lambda c: changed(c, **{"label: B": {"PPL": math.nan}})), "item 1 .*not finite"),
    "empty": (wrong_predictions(lambda c: {}), "no items"),
    "a log line of a generation": (
        lambda f: (f / "samples_x.jsonl").write_text('{"filtered_resps": ["hello"], "target": "5", "doc_hash": "a"}'),
        "line 1: needs one .log-likelihood, is greedy. per option",
    ),
    "a log without hashes": (lambda f: (f / "samples_x.jsonl").write_text('{"filtered_resps": []}'), "'target' is missing"),
    "a log with a text for a number": (
        lambda f: (f / "samples_x.jsonl").write_text('{"filtered_resps": [["a", "b"]], "target": 0, "doc_hash": "a"}'),
        "line 1: log-likelihoods and target need numbers",
    ),
    "an empty log": (lambda f: (f / "samples_x.jsonl").write_text("\n"), "has no samples"),
    "no JSON": (lambda f: (f / "samples_x.jsonl").write_text("{"), "line 1 is not valid JSON"),
    "nothing": (lambda f: None, "has neither"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_files_are_one_clear_line(tmp_path, fault):
    write, message = WRONG[fault]
    write(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        load_answers(tmp_path)
    assert "\n" not in str(caught.value)


def test_folders_of_two_kinds_or_with_two_logs_of_a_task_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        load_answers(tmp_path / "nowhere")
    answers = random_pair(3)[0]
    sample_log(tmp_path / "a", answers)
    sample_log(tmp_path / "b", answers)
    with pytest.raises(ValueError, match="two logs of task 'quiz'"):
        load_answers(tmp_path)
    opencompass(tmp_path / "a", answers)
    with pytest.raises(ValueError, match="keep them apart"):
        load_answers(tmp_path / "a")
