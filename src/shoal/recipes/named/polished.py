"""As the default, and then the layer before each cut is trained whole."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe
from shoal.train.config import TrainConfig, TrainingPhase

POLISHED = NamedRecipe(
    Recipe(
        name="polished",
        about="As default, and then the layer before each cut is trained whole, with all that the sweep set: two thirds of "
        "the tokens on hidden states, the rest on the teacher's logits (KL). The step with the lowest KL on the text that "
        "decides is kept, the start included.",
        papers=("2403.19135", "2403.17887"),
        replace="layer",
        train=TrainConfig(
            stages=(
                TrainingPhase(objective="hidden_mse", share=2 / 3, rate=0.5),
                TrainingPhase(objective="forward_kl", share=1 / 3, rate=0.25),
            )
        ),
    ),
    chooses="as `default`",
    then="the layer before each cut (`layer`), from repair `auto`; trained on hidden states, then on logits",
    text="yours",
)
