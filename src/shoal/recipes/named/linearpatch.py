"""LinearPatch: one scale per Hadamard-rotated channel in place of the span. arXiv 2505.24680."""

from shoal.fit.fit_config import FitConfig
from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe

LINEARPATCH = NamedRecipe(
    Recipe(
        name="linearpatch",
        about="Contiguous span by cosine, and one scale per Hadamard-rotated channel in its place, the ratio of mean "
        "magnitudes. The paper's training of the scales is not part of this.",
        papers=("2505.24680",),
        by="cosine/every",
        protect=(),
        guard=1,
        replace="hadamard",
        repair="solve",
        polish="none",
        fit=FitConfig(sinks="counted", keep="always", solve="ratio"),
    ),
    chooses="best span by cosine over every token",
    then="`hadamard`, closed form",
    text="WikiText-2",
    title="LinearPatch",
    differs="The published script takes the cosine along the sequence, channel by channel; here it is each token's. Its "
    "training of the scales on top-k logits is not part of the recipe. Sizes that are no power of two: see "
    "[replacements](replacements.md).",
)
