"""SLEB: greedy by running. arXiv 2402.09025."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe
from shoal.select.search.search_config import SearchConfig

SLEB = NamedRecipe(
    Recipe(
        name="sleb",
        about="One layer after the other, each time the one without which the cross-entropy of the text is lowest; removed "
        "without replacement. The first and the last layer stay. The paper reads 128 sequences of WikiText-2; set "
        "search.tokens for as much.",
        papers=("2402.09025",),
        select="greedy",
        search=SearchConfig(metric="ce"),
        guard=1,
        replace="none",
        repair="none",
    ),
    chooses="greedy by running: lowest cross-entropy without one more layer",
    then="nothing",
    text="WikiText-2",
    title="SLEB",
    differs="Each set is run on the first 16,384 tokens of the calibration slice unless `search.tokens` says more, and "
    "what was measured is remembered, so a set never runs twice.",
)
