"""Every recipe that has a name runs by one command and ends in a checkpoint that plain transformers loads."""

import importlib.util

import pytest
import yaml
from transformers import AutoModelForCausalLM

from shoal import load_recipe
from shoal.recipes.table import RECIPES

HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
TEXT = {"samples": 32, "length": 16, "selection": 4, "evaluation": 4}
OFTEN = ("evopress-depth", "bypass", "shapley")
"""Those that run hundreds of sets where nothing bounds them."""


def small_recipe(name, small):
    """The recipe as it is, on as little text as it takes."""
    recipe = load_recipe(name)
    file = {"recipe": name, "model": small["model"], "speed": False, "text": {**TEXT, "sources": [small["text"]]}}
    file["search"] = {"tokens": 32, **({"evaluations": 40} if name in OFTEN else {})}
    if recipe.repair != "none":
        file["fit"] = {"tokens": 1024}
    if recipe.training() is not None:
        file["train"] = {"tokens": 512}
    if recipe.heal is not None:
        file["heal"] = {"tokens": 256, "batch": 4, "micro_batch": 4}
    return recipe, file


@pytest.mark.slow  # a minute: forty runs from end to end
@pytest.mark.parametrize("name", RECIPES)
def test_a_named_recipe_runs_by_one_command(name, small, shoal, tmp_path):
    recipe, file = small_recipe(name, small)
    if recipe.heal is not None and recipe.heal.method == "qlora" and not HAS_BITSANDBYTES:
        pytest.skip("qlora needs bitsandbytes")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(file))
    code, _, err = shoal("run", "small.yaml", "--out", "run")
    assert code == 0, err
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model", output_loading_info=True)
    assert not any(info.values())
    stays = recipe.units != "layers" or recipe.layers == "none"
    n_layers = model.config.num_hidden_layers
    assert n_layers == 6 if stays else n_layers > 6 if recipe.grow is not None else n_layers < 6
