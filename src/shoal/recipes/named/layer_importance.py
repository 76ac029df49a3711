"""Investigating Layer Importance: windows of sublayers. arXiv 2409.14381."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe
from shoal.select.search.search_config import SearchConfig

LAYER_IMPORTANCE = NamedRecipe(
    Recipe(
        name="layer-importance",
        about="The growth of KL at the ends of windows of up to three sublayers that are off together. A diagnosis: "
        "scores.json and the report show the cornerstones, the few sublayers that hold most of it. The sublayers of lowest "
        "value go.",
        papers=("2409.14381",),
        drop="10%sublayers",
        select="lowest",
        by="windowed_kl",
        units="sublayers",
        search=SearchConfig(tokens=4_096),
        protect=(),
        guard=1,
        replace="none",
        repair="none",
    ),
    chooses="the sublayers whose loss grows least at the ends of windows that are off",
    then="nothing; a sublayer that is gone is a map of zeros",
    text="tasks",
    title="Investigating Layer Importance",
    differs="The paper removes nothing and asks for the accuracy on six tasks; a hundred items cannot tell apart what "
    "differs by less than 0.01, so here it is KL; the paper's is `--by windowed_task` with a `--task FILE` for each task. "
    "It calls its estimate a Shapley value, which it is not: it looks at nearly whole models alone, and its values do not "
    "add up.",
)
