"""What a report says of a search: whether its set was chosen, and who won where it was not."""

import pytest
import report_world

from shoal.edits.drop import Drop
from shoal.edits.plan import Candidate
from shoal.select.search.search_record import SearchRecord
from shoal.show.report.run_data import Facts, RunData
from shoal.show.report.sections.how_it_searched import search


@pytest.mark.parametrize("wins", [True, False])
def test_a_search_says_whether_its_set_was_chosen(wins):
    one, other = (
        Candidate(edits=(Drop(indices=(layer,)),), proposed_by=by, kl=kl)
        for layer, by, kl in ((2, ("greedy",), 0.5), (4, ("cosine/rest", "angular/last"), 0.25))
    )
    found = SearchRecord(
        selector="greedy",
        metric="kl",
        data="text",
        data_hash="x",
        n_tokens=64,
        n_units=6,
        n=1,
        n_evaluations=6,
        curve=((1, 0.5),),
    )
    plan = report_world.plan().model_copy(update={"candidates": (one, other) if wins else (other, one)})
    section = search(RunData(name="m", facts=Facts(), plan=plan, search=found))
    said = str(section.parts[0])
    assert ("not chosen" in said) is not wins
    assert wins or "that of cosine/rest lost less, KL 0.25 against 0.5: layers 4 (0-based, inclusive)" in said
