"""Depth first, then width: the default's cut, and zeros in what stays, to one share of all parameters. No paper."""

from shoal.prune.prune_config import PruneConfig
from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe

DEPTH_THEN_WIDTH = NamedRecipe(
    Recipe(
        name="depth-then-width",
        about="The default's cut of 17.5 % and its repair, then zeros by SparseGPT in the layers that stay until 35 % of the "
        "source's parameters are gone or zero. Layers with more outliers keep more, counted after the cut.",
        papers=("2403.19135", "2403.17887", "2301.00774", "2310.05175"),
        drop="17.5%",
        prune=PruneConfig(method="sparsegpt", sparsity="35%all", allocate="owl"),
    ),
    chooses="as `default`, 17.5 %",
    then="`auto`, then zeros by `sparsegpt` up to 35 % of all parameters, allocated by `owl`",
)
