"""As high, and then LoRA beside every linear map."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe
from shoal.train.config import TrainConfig, TrainingPhase
from shoal.train.heal.config import HealConfig

HIGH_HEAL = NamedRecipe(
    Recipe(
        name="high-heal",
        about="As high, and then LoRA beside every linear map on the teacher's logits (KL).",
        papers=("2403.19135", "2403.17887"),
        replace="layer",
        train=TrainConfig(
            stages=(
                TrainingPhase(objective="hidden_mse", share=2 / 3, rate=0.5),
                TrainingPhase(objective="forward_kl", share=1 / 3, rate=0.25),
            )
        ),
        heal=HealConfig(),
    ),
    chooses="as `default`",
    then="as `high`, then healed by `lora` on logits",
    text="yours",
)
