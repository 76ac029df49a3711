"""UIDL: a span by angular distance, healed by QLoRA. arXiv 2403.17887."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe
from shoal.train.heal.config import HealConfig
from shoal.train.heal.presets import PRESETS

UIDL = NamedRecipe(
    Recipe(
        name="uidl",
        about="Contiguous span by angular distance of the last token, removed without replacement, then QLoRA beside the "
        "MLPs on 164 M tokens of text at rank 64 and 3e-4, where the paper's own search starts; `shoal heal --preset uidl` "
        "has its ranks and rates per model.",
        papers=("2403.17887",),
        by="angular/last",
        protect=(),
        guard=1,
        replace="none",
        repair="none",
        heal=HealConfig(**PRESETS["uidl"].for_model("")),
    ),
    chooses="best span by angular distance of the last token",
    then="nothing; healed by `qlora`, 164 M tokens",
    text="C4",
    title="UIDL",
    differs="The length of the samples that the span is chosen on is not stated: the model's window, at most 1024, and 32 of "
    "them where the paper takes 10,000 (`--samples`). It heals on 5000 steps of 2,048 or 4,096 tokens a sample; here as many "
    "tokens in samples of at most 1024. Its simple rule (`uidl-simple`) is written with 1-based layer numbers and keeps the "
    "last layer: 0-based, layers `L-1-n .. L-2` go. Neither the 4-bit type nor how the adapters are merged is stated: here "
    "NF4, and the merge that measures best.",
    bibtex="""\
@inproceedings{gromov2025unreasonable,
  title     = {The Unreasonable Ineffectiveness of the Deeper Layers},
  author    = {Gromov, Andrey and Tirumala, Kushal and Shapourian, Hassan and Glorioso, Paolo and Roberts, Daniel A.},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  note      = {arXiv:2403.17887}
}""",
)
