"""Effective Layer Pruning through a Similarity Metric (CKA). arXiv 2405.17081."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe
from shoal.select.search.search_config import SearchConfig

CKA = NamedRecipe(
    Recipe(
        name="cka",
        about="One layer after the other, each time the one without which the states before the final norm stay most alike "
        "(debiased linear CKA); removed without replacement.",
        papers=("2405.17081",),
        select="greedy",
        search=SearchConfig(metric="lost_cka"),
        protect=(),
        guard=1,
        replace="none",
        repair="none",
    ),
    chooses="greedy by running: highest CKA without one more layer",
    then="nothing",
    text="CIFAR-10",
    title="Effective Layer Pruning through a Similarity Metric",
    differs="CKA is of the tokens within a sample, at most 64, averaged over samples, where the paper has one row of "
    "features for each image. The paper cuts convolutional networks and trains the whole network after each layer; here "
    "nothing is trained in between. CKA is blind to rotations of the states, which the output head is not, so it can call a "
    "harmful cut harmless.",
)
