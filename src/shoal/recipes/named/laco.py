"""LaCo: layer collapse. arXiv 2402.11187."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe
from shoal.select.merging.merge_config import MergeConfig
from shoal.select.search.search_config import SearchConfig

LACO = NamedRecipe(
    Recipe(
        name="laco",
        about="Groups of layers become one, from the top down: the first layer of the group and all differences to it. A merge "
        "stays where the student's last hidden states stay similar to the source's.",
        papers=("2402.11187",),
        select="laco",
        search=SearchConfig(metric="hidden_cosine", tokens=4096),
        merge=MergeConfig(rule="sum_diff", group=4, interval=2),
        protect=(0,),
        guard=1,
        replace="none",
        repair="none",
    ),
    chooses="groups of 4 layers from the top, each merge tried by running; the highest threshold that meets the budget",
    then="one layer: the first and all differences to it",
    text="a few sentences of Wikipedia",
    title="LaCo",
    differs="The paper gives a threshold and takes what it leads to; here `--drop` is met by a search for the highest "
    "threshold, and `merge.threshold` is the paper's way. Similarity is the mean over tokens of the cosine at the last "
    "boundary. The rule is the paper's formula; the released program adds each difference to what it has by then, which leaves "
    "the last layer's maps: `merge.rule: keep_last` (see [merging](merging.md)). Post-training is not part of it: `--heal`.",
)
