"""Ghosted Layers: the least-squares linear map of the stream in place of the span. arXiv 2605.15491."""

from shoal.fit.fit_config import FitConfig
from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe

GHOSTED_LAYERS = NamedRecipe(
    Recipe(
        name="ghosted-layers",
        about="Contiguous span by cosine, and the least-squares linear map of the stream in its place.",
        papers=("2605.15491",),
        by="cosine/every",
        protect=(),
        guard=1,
        replace="free",
        repair="solve",
        polish="none",
        fit=FitConfig(weights="plain", sinks="counted", ridge=0.0, keep="always"),
    ),
    chooses="best span by cosine over every token",
    then="`free`, closed form",
    text="C4",
    title="Ghosted Layers",
    differs="Least squares without a ridge, where the paper adds 1e-6; of several cuts each is fitted on the student's "
    "stream, not the teacher's.",
)
