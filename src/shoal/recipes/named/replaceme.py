"""ReplaceMe: a least-squares map folded into the last kept MLP. arXiv 2505.02819."""

from shoal.fit.fit_config import FitConfig
from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe

REPLACEME = NamedRecipe(
    Recipe(
        name="replaceme",
        about="Contiguous span by angular distance of the last token; a least-squares map of the last kept MLP's output, "
        "folded into its weights. Every token counts alike, no ridge, as in the released code; padding is left out here.",
        papers=("2505.02819",),
        by="angular/last",
        protect=(),
        guard=1,
        replace="none",
        repair="map",
        fit=FitConfig(weights="plain", sinks="counted", ridge=0.0, keep="always"),
    ),
    chooses="best span by angular distance of the last token",
    then="nothing; repair `map`",
    text="SlimOrca",
    title="ReplaceMe",
    differs="Its least squares: every token counts alike, no ridge; where the MLP's output map has a bias, a constant is "
    "fitted, too. The span is chosen on 32 samples of at most 1024 tokens, the paper's on 8,000 dialogues (`--samples`). The "
    "published script lets padding into the sums and reads a span that ends at boundary L after the final norm; neither is "
    "done here. What is worse than the plain cut on `selection` is undone, as with every repair.",
)
