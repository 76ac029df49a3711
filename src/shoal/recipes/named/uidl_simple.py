"""UIDL's simple rule: the deepest layers but the last. arXiv 2403.17887."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe
from shoal.train.heal.config import HealConfig
from shoal.train.heal.presets import PRESETS

UIDL_SIMPLE = NamedRecipe(
    Recipe(
        name="uidl-simple",
        about="The deepest layers but the last; no text is read to choose them. Healed as uidl.",
        papers=("2403.17887",),
        select="deepest",
        protect=(),
        guard=1,
        replace="none",
        repair="none",
        heal=HealConfig(**PRESETS["uidl"].for_model("")),
    ),
    chooses="the deepest layers but the last; nothing is measured",
    then="nothing; healed by `qlora`, 164 M tokens",
    text="C4",
)
