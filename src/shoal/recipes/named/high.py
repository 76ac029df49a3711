"""As the default, and then every weight is trained on the teacher's logits."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe
from shoal.train.heal.config import HealConfig

HIGH = NamedRecipe(
    Recipe(
        name="high",
        about="As default, and then every weight is trained on the teacher's logits (KL), at a learning rate that short runs "
        "find. The step with the lowest KL on the text that decides is kept, the start included.",
        papers=("2403.19135", "2403.17887"),
        heal=HealConfig(method="full", lr="auto"),
    ),
    chooses="as `default`",
    then="as `default`, then healed by `full` on logits, at the rate that measures best",
    text="yours",
)
