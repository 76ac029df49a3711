"""The default: candidates of every score compete, each repaired in closed form; then a short training behind the cut."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe
from shoal.train.heal.config import SHORT_HEAL_TOKENS, HealConfig

DEFAULT = NamedRecipe(
    Recipe(
        name="default",
        about="The best cuts of every criterion and of a greedy search compete, each repaired, by KL; then a closed-form sweep "
        "of the layers around the cut, and a short training of LoRA adapters on the teacher's logits, merged into a stock "
        "checkpoint.",
        papers=("2403.19135", "2403.17887", "2106.09685"),
        heal=HealConfig(tokens=SHORT_HEAL_TOKENS, optional=True),
    ),
    chooses="best of several scores and of a greedy search; first and last layer stay",
    then=f"repair `auto`, then LoRA on {SHORT_HEAL_TOKENS:,} tokens of the teacher's logits, where all layers are in memory",
    text="yours",
)
