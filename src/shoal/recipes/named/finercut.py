"""FinerCut: greedy by running, attention and MLP each on their own. arXiv 2405.18218."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe, TextChoice
from shoal.select.search.search_config import SearchConfig

FINERCUT = NamedRecipe(
    Recipe(
        name="finercut",
        about="One sublayer after the other, each time the one without which the distribution of the next token moves "
        "least (Jensen-Shannon); removed without replacement. 25 % of the sublayers, as the paper counts, is fewer of the "
        "parameters.",
        papers=("2405.18218",),
        drop="25%sublayers",
        select="greedy",
        units="sublayers",
        search=SearchConfig(metric="js", tokens=2_560),
        text=TextChoice(length=256),
        protect=(),
        guard=1,
        replace="none",
        repair="none",
    ),
    chooses="greedy by running, sublayers: lowest Jensen-Shannon divergence without one more",
    then="nothing; a sublayer that is gone is a map of zeros",
    text="WikiText-2",
    title="FinerCut",
    differs="The true Jensen-Shannon divergence, where the released code sums two divergences to the mixture the other way "
    "round; `--metric angular_logits`, `kl` and, of each token by itself, `l2_logits` are its other choices. `--select "
    "greedy-front` is its option to leave the first 40 % of the sublayers alone until as many are off. Its 10 samples of 256 "
    "tokens.",
)
