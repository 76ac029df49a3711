"""A deeper look at depth pruning: one-shot by the loss without each layer. arXiv 2407.16286."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe

DEEPER_LOOK = NamedRecipe(
    Recipe(
        name="deeper-look",
        about="The layers without which, one at a time, the cross-entropy of the text grows least; removed at once, "
        "without replacement.",
        papers=("2407.16286",),
        select="lowest",
        by="left_out_ce",
        protect=(),
        guard=1,
        replace="none",
        repair="none",
    ),
    chooses="the layers whose loss is lowest when each is left out alone",
    then="nothing",
    text="OpenWebText",
    title="A deeper look at depth pruning",
    differs="Its adaptive scores are called Shapley values; the released code draws only sets that lack one layer, whose "
    "ranking is that of leave-one-out, which is what runs here (`shapley` has Shapley values). Its other scores are `--by "
    "update_norm`, `relative_update`, `block_influence/every` and `left_out_l2_logits`; `--units sublayers` is its finer "
    "choice. Its emulated updates, a bias or a small map for each layer that is gone, need parameters that a stock layer "
    "lacks: `--repair refit` sets maps that are there.",
)
