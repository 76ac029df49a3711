"""Bypass Back-propagation: a policy gradient over masks. arXiv 2406.10576."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe
from shoal.select.search.search_config import SearchConfig

BYPASS = NamedRecipe(
    Recipe(
        name="bypass",
        about="Every layer is kept with a probability that follows the cross-entropy of drawn sets of layers, within the "
        "budget; in the end those least likely to be kept go, without replacement.",
        papers=("2406.10576",),
        select="policy-gradient",
        search=SearchConfig(metric="ce", tokens=2_048),
        protect=(),
        guard=1,
        replace="none",
        repair="none",
    ),
    chooses="a policy gradient over masks of layers, by cross-entropy",
    then="nothing",
    text="C4",
    title="Bypass Back-propagation",
    differs="Layers, where the released code has groups of heads and channels; 250 steps of 4 masks, where it makes "
    "thousands; all start with the same probability, where it starts from Wanda's metric; one fixed text for all masks. The "
    "rate is 0.02, constant, of losses divided by their spread, where the paper has 2e-3 or 6e-3 with a cosine; losses are "
    "held against the mean of their masks, itself included.",
)
