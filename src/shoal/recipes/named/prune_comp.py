"""Prune&Comp: one scale of the stream behind the cut. arXiv 2507.18212."""

from shoal.fit.fit_config import FitConfig
from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe

PRUNE_COMP = NamedRecipe(
    Recipe(
        name="prune-comp",
        about="Contiguous span by cosine, and one scale of the stream behind it. The paper drops layers one by one and "
        "compensates and measures anew after each; here the span is chosen at once, and the last layer stays: a scale "
        "before the final norm does nothing.",
        papers=("2507.18212",),
        by="cosine/every",
        protect=(-1,),
        guard=1,
        replace="none",
        repair="magnitude",
        fit=FitConfig(sinks="counted", keep="always"),
    ),
    chooses="best span by cosine over every token",
    then="nothing; repair `magnitude`",
    text="yours",
    title="Prune&Comp",
    differs="The paper drops one layer, compensates and measures anew, and so on; here one span goes at once, and the last "
    "layer stays. It multiplies the embedding and every map before the cut by the scale; here what every later layer adds is "
    "divided by it, which is the same function and leaves a tied head as it is.",
)
