"""Shortened LLaMA by Taylor scores. arXiv 2402.02834."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe
from shoal.train.heal.config import HealConfig
from shoal.train.heal.presets import PRESETS

SHORTENED_TAYLOR = NamedRecipe(
    Recipe(
        name="shortened-taylor",
        about="The layers of lowest first-order Taylor score, sum of |w g| over their weights; the first four and the last "
        "two stay. Removed without replacement, then LoRA of rank 8 beside every linear map at 1e-4.",
        papers=("2402.02834",),
        select="lowest",
        by="taylor_weights",
        protect=(0, 1, 2, 3, -2, -1),
        guard=1,
        replace="none",
        repair="none",
        heal=HealConfig(**PRESETS["shortened"].for_model("")),
    ),
    chooses="the layers of lowest Taylor score; first four and last two stay",
    then="nothing; healed by `lora`",
    text="BookCorpus, Alpaca",
    title="Shortened LLaMA",
    differs="At least 30 calibration samples, where the paper takes 10: gradients of so few rank poorly (arXiv 2411.15558, "
    "table 6). LoRA on text, one pass, where it is two epochs of instructions; its continued pre-training is `--heal full` "
    "on as much text as there is.",
)
