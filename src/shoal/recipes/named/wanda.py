"""Wanda: width alone, by weight times norm of the input. arXiv 2306.11695."""

from shoal.prune.prune_config import PruneConfig
from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe

WANDA_ZEROS = NamedRecipe(
    Recipe(
        name="wanda",
        about="No layer goes; in every row of every map the half of the weights with least size times "
        "norm of its input is zero.",
        papers=("2306.11695",),
        layers="none",
        guard=1,
        repair="none",
        prune=PruneConfig(method="wanda"),
    ),
    chooses="no layer",
    then="zeros: 50 % of the maps by `wanda`",
    text="C4",
    title="Wanda",
    differs="The paper reads 128 sequences of 2,048 tokens; `text.samples` and `text.length` set as much. `text` is yours. The "
    "variant that searches the share of every row is not here. The weights that stay are trained by a healing with "
    "`keep_zeros`; the paper's LoRA is the preset of `shoal heal`.",
    bibtex="""\
@inproceedings{sun2024wanda,
  title     = {A Simple and Effective Pruning Approach for Large Language Models},
  author    = {Sun, Mingjie and Liu, Zhuang and Bair, Anna and Kolter, J. Zico},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  note      = {arXiv:2306.11695}
}""",
)
