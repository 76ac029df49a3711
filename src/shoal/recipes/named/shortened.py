"""Shortened LLaMA by perplexity. arXiv 2402.02834."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe
from shoal.train.heal.config import HealConfig
from shoal.train.heal.presets import PRESETS

SHORTENED = NamedRecipe(
    Recipe(
        name="shortened",
        about="The layers without which, one at a time, the cross-entropy of the text grows least, removed at once without "
        "replacement; then LoRA of rank 8 beside every linear map at 1e-4.",
        papers=("2402.02834",),
        select="lowest",
        by="left_out_ce",
        protect=(),
        guard=1,
        replace="none",
        repair="none",
        heal=HealConfig(**PRESETS["shortened"].for_model("")),
    ),
    chooses="the layers whose loss is lowest when each is left out alone",
    then="nothing; healed by `lora`",
    text="BookCorpus, Alpaca",
)
