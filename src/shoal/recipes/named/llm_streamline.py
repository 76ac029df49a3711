"""LLM-Streamline: a span by cosine, one trained layer in its place. arXiv 2403.19135."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe
from shoal.train.config import TrainConfig

LLM_STREAMLINE = NamedRecipe(
    Recipe(
        name="llm-streamline",
        about="Contiguous span by cosine over every token, one inherited layer trained on hidden states (MSE). "
        "AdamW 2e-4 with the schedule as stated, 62 M tokens; the paper's text is the preset mix:slimpajama.",
        papers=("2403.19135",),
        by="cosine/every",
        protect=(),
        guard=1,
        replace="layer",
        repair="none",
        train=TrainConfig(
            tokens=62_000_000,
            lr=2e-4,
            min_lr=5e-5,
            warmup=0.01,
            weight_decay=1e-3,
            betas=(0.9, 0.999),  # The released MSE path has AdamW's own values.
            clip=5.0,
            batch=128,
            micro_batch=8,
        ),
    ),
    chooses="best span by cosine over every token",
    then="trained layer, 62 M tokens",
    text="`mix:slimpajama`",
    title="LLM-Streamline",
    differs="The span is chosen on 32 samples of at most 1024 tokens, where the paper takes 500 of 2,048 (`--samples`). The "
    "last span ends at boundary L before the final norm; the published script reads the state after it, which is another "
    "space. The schedule is the stated one (warm-up, cosine); the published script advances it at an eighth of that rate. "
    "The layer trains under the causal mask it will run with.",
    bibtex="""\
@inproceedings{chen2025streamlining,
  title     = {Streamlining Redundant Layers to Compress Large Language Models},
  author    = {Chen, Xiaodong and Hu, Yuxuan and Zhang, Jing and Wang, Yanling and Li, Cuiping and Chen, Hong},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  note      = {arXiv:2403.19135}
}""",
)
