"""v(S) as searches see it: asked in batches, remembered, counted, limited, and taken up again after a kill."""

import json
import subprocess
import sys

import pytest

from shoal.measure.set_function import CountedSets, OutOfEvaluations
from shoal.measure.value_file import ValueFile
from shoal.words.types import Unit, model_units

UNITS = model_units(4)
ABOUT = {"model": "m", "metric": "kl"}


def off(*layers):
    return frozenset(UNITS[layer] for layer in layers)


class Recorded:
    """The number of units that are off, with a record of what was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, sets):
        self.asked.append(list(sets))
        return [float(len(one)) / 3 for one in sets]


def test_a_set_is_measured_once_and_values_keep_the_order_of_the_question():
    measure = Recorded()
    v = CountedSets(measure, UNITS)
    assert v.values([off(1, 2), off(0), off(1, 2)]) == [2 / 3, 1 / 3, 2 / 3]
    assert v.values([off(0), off()]) == [1 / 3, 0.0]
    assert measure.asked == [[off(1, 2), off(0)], [off()]]
    assert (v.n_evaluations, v.n_measured) == (3, 3)


def test_a_limit_measures_what_it_allows_and_remembers_it():
    v = CountedSets(Recorded(), UNITS, limit=3)
    v.values([off(0), off(1)])
    with pytest.raises(OutOfEvaluations, match="3 evaluations are spent; 1 more"):
        v.values([off(2), off(0), off(3)])
    assert v.n_left == 0 and v.known[off(2)] == 1 / 3 and off(3) not in v.known
    assert v.values([off(2), off(1)]) == [1 / 3, 1 / 3]


def test_a_unit_that_the_function_lacks_is_refused():
    with pytest.raises(ValueError, match="no unit mlp.2 here; units: layer.0, layer.1"):
        CountedSets(Recorded(), UNITS).values([frozenset({Unit("mlp", 2)})])


def test_values_are_taken_up_from_the_file_and_counted_as_before(tmp_path):
    first = CountedSets(Recorded(), UNITS, limit=3, file=ValueFile(tmp_path, ABOUT))
    first.values([off(0), off(1, 3)])
    measure = Recorded()
    again = CountedSets(measure, UNITS, limit=3, file=ValueFile(tmp_path, ABOUT))
    assert again.values([off(1, 3), off(2), off(0)]) == [2 / 3, 1 / 3, 1 / 3]
    assert measure.asked == [[off(2)]]
    assert (again.n_evaluations, again.n_measured, again.n_left) == (3, 1, 0)


@pytest.mark.parametrize("n_bytes_lost", [1, 2, 10, 40])
def test_a_line_that_was_not_written_whole_counts_for_nothing(tmp_path, n_bytes_lost):
    v = CountedSets(Recorded(), UNITS, file=ValueFile(tmp_path, ABOUT))
    v.values([off(0)])
    v.values([off(1)])
    whole = v._file.path.read_bytes()
    v._file.path.write_bytes(whole[:-n_bytes_lost])
    again = CountedSets(Recorded(), UNITS, file=ValueFile(tmp_path, ABOUT))
    assert off(0) in again.known and off(1) not in again.known
    again.values([off(1)])
    assert again._file.path.read_bytes() == whole


def test_other_models_metrics_and_texts_have_files_of_their_own(tmp_path):
    for about in (ABOUT, {**ABOUT, "metric": "js"}):
        CountedSets(Recorded(), UNITS, file=ValueFile(tmp_path, about)).values([off(0)])
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_that_holds_something_else_is_refused_in_one_line(tmp_path):
    file = ValueFile(tmp_path, ABOUT)
    for content in (json.dumps({"other": 1}) + "\n", json.dumps(file.about) + "\nnonsense\n"):
        file.path.write_text(content)
        with pytest.raises(ValueError, match="does not hold values of sets") as refusal:
            CountedSets(Recorded(), UNITS, file=ValueFile(tmp_path, ABOUT))
        assert "\n" not in str(refusal.value)


def test_odd_values_come_back_as_they_were(tmp_path):
    odd = [float("inf"), 1 / 3, 1e-320, -0.0]
    CountedSets(lambda sets: odd, UNITS, file=ValueFile(tmp_path, ABOUT)).values([off(i) for i in range(4)])
    again = CountedSets(Recorded(), UNITS, file=ValueFile(tmp_path, ABOUT))
    assert list(map(repr, again.values([off(i) for i in range(4)]))) == list(map(repr, odd))


def test_searches_and_their_function_need_no_torch():
    code = "import sys, shoal.measure.set_function; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_units_of_a_model_in_its_order():
    assert [str(unit) for unit in model_units(3, "sublayers", protected=(0,))] == ["attn.1", "mlp.1", "attn.2", "mlp.2"]
    assert model_units(2, "attention") == (Unit("attn", 0), Unit("attn", 1))
