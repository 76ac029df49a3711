"""Layers by true Shapley values of the loss. arXiv 2407.16286 has the name."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe
from shoal.select.search.search_config import SearchConfig

SHAPLEY = NamedRecipe(
    Recipe(
        name="shapley",
        about="The layers of lowest Shapley value: the mean growth of KL when a layer goes, over all orders in which "
        "layers can go; exact for up to 12 layers, else from 50 random orders. Removed without replacement.",
        papers=("2407.16286",),
        select="lowest",
        by="shapley_kl",
        search=SearchConfig(tokens=4_096),
        guard=1,
        replace="none",
        repair="none",
    ),
    chooses="the layers of lowest Shapley value of the KL",
    then="nothing",
    text="yours",
)
