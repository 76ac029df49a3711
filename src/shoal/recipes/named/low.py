"""A fraction of the default's time."""

from shoal.fit.fit_config import FitConfig
from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe, TextChoice

LOW = NamedRecipe(
    Recipe(
        name="low",
        about="A fraction of the default's time: the best span competes with the layers that lose least when each is left out "
        "by itself, only the layer before each cut is refitted; scores and figures rest on half of the default's text.",
        papers=("2403.19135", "2403.17887"),
        guard=2,
        repair="refit",
        text=TextChoice(tokens=8_192),
        fit=FitConfig(tokens=32_000),
    ),
    chooses="the span of `default`, or the layers whose absence loses least, each left out by itself",
    then="nothing; repair `refit` on 32 k tokens",
    text="yours",
)
