"""Every recipe that has a name runs by one command and ends in a checkpoint that transformers loads."""

import importlib.util

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM
from world import write_model, write_text

from shoal import load_recipe
from shoal.edits.plan import Plan
from shoal.recipes.table import RECIPES
from shoal.recipes.unread import unread_keys
from shoal.run.run_files import plan_file

HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
N_LAYERS = 10
TEXT = {"samples": 32, "length": 16, "selection": 4, "evaluation": 4}
OFTEN = ("evopress-depth", "bypass", "shapley")
"""Those that run hundreds of sets where nothing bounds them."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Enough layers for the recipe that keeps the first four and the last two, and maps wide enough for four bits."""
    folder = tmp_path_factory.mktemp("place")
    write_model(folder / "model", n_layers=N_LAYERS)
    config = AutoConfig.from_pretrained(folder / "model", hidden_size=64, intermediate_size=128, head_dim=16)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    return {
        "model": str(folder / "model"),
        "text": str(write_text(folder / "text.jsonl", n_documents=1_000)),
    }


def small_recipe(name, place):
    """The recipe as it is, on as little text as it takes."""
    recipe = load_recipe(name)
    file = {"recipe": name, "model": place["model"], "speed": False, "text": {**TEXT, "sources": [place["text"]]}}
    file["search"] = {"tokens": 32, **({"evaluations": 40} if name in OFTEN else {})}
    if recipe.repair != "none":
        file["fit"] = {"tokens": 1024}
    if recipe.training() is not None:
        file["train"] = {"tokens": 512}
    if recipe.heal is not None:
        file["heal"] = {"tokens": 256, "batch": 4, "micro_batch": 4}
    for key in unread_keys(recipe):  # A file that gives a key that nothing reads is refused.
        name, _, inner = key.partition(".")
        if inner:
            file.get(name, {}).pop(inner, None)
        else:
            file.pop(name, None)
    return recipe, file


@pytest.mark.slow  # Forty runs from end to end take minutes.
@pytest.mark.parametrize("name", RECIPES)
def test_a_named_recipe_runs_by_one_command(name, place, shoal, tmp_path):
    recipe, file = small_recipe(name, place)
    if recipe.heal is not None and recipe.heal.method == "qlora" and not HAS_BITSANDBYTES:
        pytest.skip("qlora needs bitsandbytes")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(file))
    code, _, err = shoal("run", "small.yaml", "--out", "run")
    assert code == 0, err
    plan = Plan.load(plan_file(tmp_path / "run"))
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "run" / "model", output_loading_info=True, trust_remote_code=plan.brings_code
    )
    assert not any(info.values())
    n_layers = model.config.num_hidden_layers
    if recipe.layers == "none":
        assert n_layers == N_LAYERS
    elif recipe.units != "layers":
        assert n_layers <= N_LAYERS and plan.removed_units
    else:
        assert n_layers > N_LAYERS if recipe.grow is not None else n_layers < N_LAYERS
