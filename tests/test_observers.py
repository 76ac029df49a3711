"""The table of observers of the scan: what is not in it is refused, and what is says what it adds."""

import pytest

from shoal.measure.observers import OBSERVERS, ScanFacts
from shoal.recipes.recipe import Recipe
from shoal.recipes.recipe_file import load_recipe


def test_what_is_not_in_the_table_is_refused_by_name(small):
    with pytest.raises(ValueError, match="unknown observer 'kca'; did you mean 'cka'"):
        Recipe(observers=("kca",))
    with pytest.raises(ValueError, match="'cka/rest' is no score; did you mean"):
        load_recipe("default", {"by": "cka/rest"})


@pytest.mark.parametrize("name", OBSERVERS)
def test_an_entry_builds_what_it_says(name):
    entry = OBSERVERS[name]
    facts = ScanFacts(n_layers=3, hidden_size=16, length=20, seed=0)
    assert entry.name == name and entry.about and entry.n_bytes(facts) > 0
    assert tuple(table.name for table in entry.build(facts).tables()) == entry.tables
