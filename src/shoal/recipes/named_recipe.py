"""What an entry of the table of recipes says of itself: its values, its words, its paper, and what differs from the paper."""

from dataclasses import dataclass

from shoal.recipes.recipe import Recipe


@dataclass(frozen=True)
class NamedRecipe:
    """An entry of :data:`shoal.recipes.table.RECIPES`.

    Attributes:
        recipe: the values, with name, description and arXiv numbers.
        chooses: how the layers are chosen; ``then``: what is put in their place, repaired or trained. One phrase each, in
            Markdown, for the help and for the list in docs/recipes.md.
        text: the text that the paper uses; ``yours`` where there is none.
        title: the method's name as its paper writes it; empty where another recipe of the same paper speaks for both.
        differs: what the paper leaves open and how it was decided, and what is not done here. Markdown, full sentences.
        bibtex: the entry of the recipe's first paper; stands in one recipe of each paper.
    """

    recipe: Recipe
    chooses: str
    then: str
    text: str = "yours"
    title: str = ""
    differs: str = ""
    bibtex: str = ""

    @property
    def name(self) -> str:
        """The name in files and on the command line."""
        return self.recipe.name
