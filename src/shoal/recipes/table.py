"""The recipes by name: the one list that the command, its help, the documents and the tests read.

A new one is a file of :mod:`shoal.recipes.named` and a line here; ``scripts/list_recipes.py`` lists it in docs/recipes.md.
"""

from shoal.recipes.named.bypass import BYPASS
from shoal.recipes.named.cka import CKA
from shoal.recipes.named.deeper_look import DEEPER_LOOK
from shoal.recipes.named.default import DEFAULT
from shoal.recipes.named.depth_then_width import DEPTH_THEN_WIDTH
from shoal.recipes.named.evopress_depth import EVOPRESS_DEPTH
from shoal.recipes.named.finercut import FINERCUT
from shoal.recipes.named.ghosted_layers import GHOSTED_LAYERS
from shoal.recipes.named.grow import GROW
from shoal.recipes.named.high import HIGH
from shoal.recipes.named.laco import LACO
from shoal.recipes.named.lamp import LAMP_ZEROS
from shoal.recipes.named.layer_importance import LAYER_IMPORTANCE
from shoal.recipes.named.lesa import LESA
from shoal.recipes.named.linearpatch import LINEARPATCH
from shoal.recipes.named.llama_pro import LLAMA_PRO
from shoal.recipes.named.llm_streamline import LLM_STREAMLINE
from shoal.recipes.named.low import LOW
from shoal.recipes.named.owl import OWL_ZEROS
from shoal.recipes.named.polished import POLISHED
from shoal.recipes.named.prune_comp import PRUNE_COMP
from shoal.recipes.named.reassessing import REASSESSING
from shoal.recipes.named.replaceme import REPLACEME
from shoal.recipes.named.shapley import SHAPLEY
from shoal.recipes.named.shortened import SHORTENED
from shoal.recipes.named.shortened_taylor import SHORTENED_TAYLOR
from shoal.recipes.named.shortgpt import SHORTGPT
from shoal.recipes.named.slayer import SLAYER
from shoal.recipes.named.sleb import SLEB
from shoal.recipes.named.sliding_merge import SLIDING_MERGE
from shoal.recipes.named.solar import SOLAR
from shoal.recipes.named.sparsegpt import SPARSEGPT_ZEROS
from shoal.recipes.named.streamline_kd import STREAMLINE_KD
from shoal.recipes.named.uidl import UIDL
from shoal.recipes.named.uidl_simple import UIDL_SIMPLE
from shoal.recipes.named.wanda import WANDA_ZEROS
from shoal.recipes.named_recipe import NamedRecipe
from shoal.words.entries import Entries, by_name

RECIPES: Entries[NamedRecipe] = by_name(
    "recipe",
    DEFAULT,
    LOW,
    HIGH,
    POLISHED,
    LLM_STREAMLINE,
    UIDL,
    UIDL_SIMPLE,
    REASSESSING,
    STREAMLINE_KD,
    SHORTGPT,
    SLEB,
    FINERCUT,
    EVOPRESS_DEPTH,
    DEEPER_LOOK,
    SHAPLEY,
    LAYER_IMPORTANCE,
    CKA,
    BYPASS,
    SHORTENED,
    SHORTENED_TAYLOR,
    REPLACEME,
    LINEARPATCH,
    GHOSTED_LAYERS,
    PRUNE_COMP,
    LACO,
    SLIDING_MERGE,
    WANDA_ZEROS,
    SPARSEGPT_ZEROS,
    OWL_ZEROS,
    LAMP_ZEROS,
    DEPTH_THEN_WIDTH,
    GROW,
    LLAMA_PRO,
    SOLAR,
    LESA,
    SLAYER,
)
