"""SparseGPT: width alone, the other weights of a row make up for its zeros. arXiv 2301.00774."""

from shoal.prune.prune_config import PruneConfig
from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe

SPARSEGPT_ZEROS = NamedRecipe(
    Recipe(
        name="sparsegpt",
        about="No layer goes; half of the weights of every map are zero, chosen column by column by what their loss costs once "
        "the columns to the right make up for it.",
        papers=("2301.00774",),
        layers="none",
        guard=1,
        repair="none",
        prune=PruneConfig(method="sparsegpt"),
    ),
    chooses="no layer",
    then="zeros: 50 % of the maps by `sparsegpt`",
    text="C4",
    title="SparseGPT",
    differs="Blocks of 128 columns and 1 % damping, as in the released code; sums in fp64 of products in fp32, and the solves "
    "in fp64. The paper reads 128 sequences of 2,048 tokens.",
    bibtex="""\
@inproceedings{frantar2023sparsegpt,
  title     = {{SparseGPT}: Massive Language Models Can Be Accurately Pruned in One-Shot},
  author    = {Frantar, Elias and Alistarh, Dan},
  booktitle = {International Conference on Machine Learning},
  year      = {2023},
  note      = {arXiv:2301.00774}
}""",
)
