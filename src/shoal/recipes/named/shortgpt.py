"""ShortGPT: the layers of lowest block influence. arXiv 2403.03853."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe

SHORTGPT = NamedRecipe(
    Recipe(
        name="shortgpt",
        about="The layers of lowest block influence, each on its own, removed without replacement.",
        papers=("2403.03853",),
        select="lowest",
        by="block_influence/every",
        protect=(),
        guard=1,
        replace="none",
        repair="none",
    ),
    chooses="the layers of lowest block influence",
    then="nothing",
    text="PG19",
    title="ShortGPT",
    differs="Block influence is the mean over tokens of one minus each token's cosine, not one cosine of the flattened "
    "batch, and the last layer is scored on its own output, before the final norm. 32 k tokens of `--text`, where the paper "
    "reads a split of PG19.",
    bibtex="""\
@inproceedings{men2025shortgpt,
  title     = {{ShortGPT}: Layers in Large Language Models are More Redundant Than You Expect},
  author    = {Men, Xin and Xu, Mingyu and Zhang, Qingyu and Yuan, Qianhao and Wang, Bingning and Lin, Hongyu and
               Lu, Yaojie and Han, Xianpei and Chen, Weipeng},
  booktitle = {Findings of the Association for Computational Linguistics: ACL 2025},
  year      = {2025},
  note      = {arXiv:2403.03853}
}""",
)
