"""LESA: layers predicted from their neighbours. arXiv 2502.13794."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe
from shoal.select.grow_config import GrowConfig
from shoal.train.heal.config import HealConfig

LESA = NamedRecipe(
    Recipe(
        name="lesa",
        about="A new layer in every gap of the second half, its maps predicted from its neighbours in the singular basis of "
        "all layers; then everything is trained on text.",
        papers=("2502.13794",),
        grow=GrowConfig(to="150%", init="lesa"),
        guard=1,
        repair="none",
        heal=HealConfig(method="full", objective="next_token"),
    ),
    chooses="nothing goes; one new layer in each gap of layers 15..31 of 32",
    then="predicted weights, then continued pretraining of all (`heal: full`)",
    text="Wikipedia",
    title="LESA",
    differs="The predictor says what is missing to the mean of the two neighbours, and a map takes the mean itself where "
    "held-out triples are no better predicted; penalty and epochs are those of the released code (5e-4, 10), not of the text. "
    "Norms are the neighbours' mean, where the released code copies those of layer 0. `predict.json` says what each predictor "
    "is worth.",
)
