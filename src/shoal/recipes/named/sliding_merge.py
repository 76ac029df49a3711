"""Sliding layer merging. arXiv 2502.19159."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe
from shoal.select.merging.merge_config import MergeConfig
from shoal.select.search.search_config import SearchConfig
from shoal.train.heal.config import HealConfig

SLIDING_MERGE = NamedRecipe(
    Recipe(
        name="sliding-merge",
        about="A window below the top layer grows downwards while its layers, merged into one, leave the last hidden states "
        "similar; then the next window begins. Merged maps are those of the window's last layer, norms those of its first. "
        "Then LoRA on text.",
        papers=("2502.19159",),
        select="sliding",
        search=SearchConfig(metric="hidden_cosine", tokens=2048),
        merge=MergeConfig(rule="keep_last"),
        protect=(-1,),
        guard=1,
        replace="none",
        repair="none",
        heal=HealConfig(rank=8, lr=1e-4, objective="next_token", batch=64),
    ),
    chooses="windows from the top that grow, each tried by running; the highest threshold that meets the budget",
    then="one layer: the maps of the window's last, the norms of its first; healed by `lora`",
    text="BookCorpus; Alpaca for healing",
    title="Sliding layer merging",
    differs="The paper speaks of patches of similar layers by CKA; the released program decides by the cosine of the last "
    "hidden states alone, and so does this. `--drop` is met by a search for the highest threshold (`merge.threshold`: the "
    "paper's way). The cosine is taken per token, where the program flattens a sequence; a window that is still open at the "
    "front is merged, where the program forgets it. The search reads 2,048 tokens, the paper's 10 samples of 128. "
    "It heals with 2 epochs of Alpaca; here 1 M tokens of `--text`; scale, warm-up and the floor of the rate are Shoal's.",
)
