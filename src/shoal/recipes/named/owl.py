"""OWL: width alone, layers with more outliers keep more. arXiv 2310.05175."""

from shoal.prune.prune_config import PruneConfig
from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe

OWL_ZEROS = NamedRecipe(
    Recipe(
        name="owl",
        about="No layer goes; 70 % of the weights of the maps are zero by Wanda, more of them in layers with fewer outliers.",
        papers=("2310.05175", "2306.11695"),
        layers="none",
        guard=1,
        repair="none",
        prune=PruneConfig(method="wanda", sparsity="70%", allocate="owl", spread=0.08, outlier=5.0),
    ),
    chooses="no layer",
    then="zeros: 70 % of the maps by `wanda`, allocated by `owl`",
    text="C4",
    title="OWL",
    differs="The mean that meets the budget is weighted by parameters, where the released program takes the plain one and "
    "misses the budget when layers differ in size; shares stay in 0 to 99 % and the others make up for it. Equal layers give "
    "equal shares. M 5 and lambda 0.08 are those of the paper's commands for 70 %. Mixed N:8 patterns are not here. "
    "The paper reads 128 samples of 2,048 tokens; here as many tokens as a scan.",
    bibtex="""\
@inproceedings{yin2024owl,
  title     = {Outlier Weighed Layerwise Sparsity ({OWL}): A Missing Secret Sauce for Pruning {LLMs} to High Sparsity},
  author    = {Yin, Lu and Wu, You and Zhang, Zhenyu and Hsieh, Cheng-Yu and Wang, Yaqing and Jia, Yiling and Li, Gen and
               Jaiswal, Ajay and Pechenizkiy, Mykola and Liang, Yi and Bendersky, Michael and Wang, Zhangyang and Liu, Shiwei},
  booktitle = {International Conference on Machine Learning},
  year      = {2024},
  note      = {arXiv:2310.05175}
}""",
)
