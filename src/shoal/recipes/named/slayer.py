"""Llama SLayer: deep layers out, shallow ones in. arXiv 2410.02330."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe
from shoal.select.grow_config import GrowConfig
from shoal.train.heal.config import HealConfig

SLAYER = NamedRecipe(
    Recipe(
        name="slayer",
        about="The last two layers go; new ones, the mean of their neighbours with zero output maps, come behind every second "
        "layer of the first half; then the new ones alone are trained on text.",
        papers=("2410.02330",),
        grow=GrowConfig(to="119%", init="slayer", cut=2),
        guard=1,
        repair="none",
        heal=HealConfig(method="new", objective="next_token"),
    ),
    chooses="the last 2 layers go; new ones in the first half, 38 layers of 32",
    then="the neighbours' mean with zero output maps, which alone are trained (`heal: new`)",
    title="Llama SLayer",
    differs="What the paper leaves optional is done: the last layers go (`grow.cut`, 0 leaves them). New layers are as many as "
    "lead to the depth asked for: 8 for a source of 32 and 38, behind every second layer of its first half. The "
    "released code deletes and trains nothing; the rest follows the text.",
)
