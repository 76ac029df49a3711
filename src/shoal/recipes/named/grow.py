"""Growing without training: new layers that start as nothing."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe
from shoal.select.grow_config import GrowConfig

GROW = NamedRecipe(
    Recipe(
        name="grow",
        about="New layers with zero output maps, spread over the model: step 0 is the source bit for bit. Nothing is trained.",
        grow=GrowConfig(),
        guard=1,
        repair="none",
    ),
    chooses="nothing goes; a quarter more layers, spread",
    then="copies with zero output maps",
)
