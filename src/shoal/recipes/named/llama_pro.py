"""LLaMA Pro: block expansion. arXiv 2401.02415."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe
from shoal.select.grow_config import GrowConfig
from shoal.train.heal.config import HealConfig

LLAMA_PRO = NamedRecipe(
    Recipe(
        name="llama-pro",
        about="A copy of the last layer of each of n equal groups behind it, with zero output maps, so that the start is the "
        "source; then the copies alone are trained on text.",
        papers=("2401.02415",),
        grow=GrowConfig(to="125%", init="identity"),
        guard=1,
        repair="none",
        heal=HealConfig(method="new", objective="next_token"),
    ),
    chooses="nothing goes; 8 new layers for 32, one behind each group of 4",
    then="copies with zero output maps, which alone are trained (`heal: new`)",
    text="80 B tokens of code and mathematics",
    title="LLaMA Pro",
    differs="The paper trains on text that the source has not seen, for 80 B tokens; here on `--text`, 1 M tokens unless "
    "`--heal-tokens` says more.",
)
