"""LAMP: width alone, magnitude with one threshold on a score that does not see a map's scale. arXiv 2010.07611."""

from shoal.prune.prune_config import PruneConfig
from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe

LAMP_ZEROS = NamedRecipe(
    Recipe(
        name="lamp",
        about="No layer goes and no text is read to choose; half of the weights of the maps are zero, those of least square "
        "over the squares of their map that are not smaller.",
        papers=("2010.07611",),
        layers="none",
        guard=1,
        repair="none",
        prune=PruneConfig(method="magnitude", allocate="lamp"),
    ),
    chooses="no layer",
    then="zeros: 50 % of the maps by `magnitude`, allocated by `lamp`",
    title="LAMP",
    differs="The paper prunes networks for images and trains them on; here nothing is trained unless a healing with "
    "`keep_zeros` follows. Scores in fp64: the suffix sums of the released code lose 3 % at the size of these maps in fp32.",
    bibtex="""\
@inproceedings{lee2021lamp,
  title     = {Layer-adaptive Sparsity for the Magnitude-based Pruning},
  author    = {Lee, Jaeho and Park, Sejun and Mo, Sangwoo and Ahn, Sungsoo and Shin, Jinwoo},
  booktitle = {International Conference on Learning Representations},
  year      = {2021},
  note      = {arXiv:2010.07611}
}""",
)
