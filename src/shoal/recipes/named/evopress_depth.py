"""EvoPress, depth alone: evolution by running. arXiv 2410.14649."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe

EVOPRESS_DEPTH = NamedRecipe(
    Recipe(
        name="evopress-depth",
        about="Sets of layers whose children swap some, the best by KL live on; removed without replacement. The paper "
        "starts from 64 sets, makes 32 children and selects in steps on ever more text; here it is 16 and 16, all "
        "run on the same text.",
        papers=("2410.14649",),
        select="evolution",
        protect=(),
        guard=1,
        replace="none",
        repair="none",
    ),
    chooses="evolution by running: sets of lowest KL",
    then="nothing",
    text="yours",
    title="EvoPress",
    differs="Depth alone: level switching between on and off, of whole layers where the paper switches attention and MLP. 16 "
    "sets at the start and 50 generations of 16 children with 2 survivors, where the paper has 64, 32 and a selection in "
    "steps on growing text, as many generations as k (n - k) / 1.5 for k of n layers, and 131 k tokens; here 16 k.",
)
