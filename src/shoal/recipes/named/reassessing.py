"""Reassessing Layer Pruning: the deepest layers, then the end of the model is trained. arXiv 2411.15558."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe
from shoal.train.heal.config import HealConfig
from shoal.train.heal.presets import PRESETS

REASSESSING = NamedRecipe(
    Recipe(
        name="reassessing",
        about="The deepest layers but the last (the paper removes the last one, too), then the head, the final norm and "
        "the last three layers are trained on text at 1e-5; for models whose head is not tied.",
        papers=("2411.15558",),
        select="deepest",
        protect=(),
        guard=1,
        replace="none",
        repair="none",
        heal=HealConfig(**PRESETS["reassessing"].for_model("")),
    ),
    chooses="the deepest layers but the last; nothing is measured",
    then="nothing; healed by `partial`",
    text="Alpaca, Dolly",
    title="Reassessing Layer Pruning",
    differs="The last layer stays, where the paper removes it, too. One pass over the text instead of two epochs. The "
    "choices that it compares with are options: `--select lowest --by left_out_ce` (perplexity), `taylor_weights`, "
    "`weight_l1`, `weight_l2` or `block_influence/every`; its code takes one cosine over a whole batch for the last, which "
    "one token with a large norm decides.",
)
