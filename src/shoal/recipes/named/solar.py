"""SOLAR: depth up-scaling. arXiv 2312.15166."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe
from shoal.select.grow_config import GrowConfig
from shoal.train.heal.config import HealConfig

SOLAR = NamedRecipe(
    Recipe(
        name="solar",
        about="Two copies of the model, the first without its last layers and the second without its first, one behind the "
        "other: the middle layers stand twice. Then everything is trained on text.",
        papers=("2312.15166",),
        grow=GrowConfig(to="150%", init="copy", where="range"),
        guard=1,
        repair="none",
        heal=HealConfig(method="full", objective="next_token"),
    ),
    chooses="nothing goes; layers 8..23 of 32 once more behind 23",
    then="the same weights again, then continued pretraining of all (`heal: full`)",
    title="SOLAR",
    differs="The paper names no text and no number of tokens for its continued pretraining; here 1 M tokens of `--text` unless "
    "`--heal-tokens` says more. `shoal export mergekit` writes the YAML that makes the same start with mergekit.",
)
