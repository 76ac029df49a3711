"""LLM-Streamline's cut and layer, and then distillation of everything."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe
from shoal.train.heal.config import HealConfig

STREAMLINE_KD = NamedRecipe(
    Recipe(
        name="streamline-kd",
        about="LLM-Streamline's choice and its inherited layer, both at 1 M tokens; then everything is trained on the "
        "teacher's logits.",
        papers=("2403.19135",),
        by="cosine/every",
        protect=(),
        guard=1,
        replace="layer",
        repair="none",
        heal=HealConfig(method="full"),
    ),
    chooses="best span by cosine over every token",
    then="trained layer, then healed by `full` on logits",
    text="yours",
)
