"""A run with every kind of replacement ends in a checkpoint that loads, has the planned size and says how it is held."""

import json

import pytest
from test_run_compress import recipe
from transformers import AutoModelForCausalLM

from shoal import compress
from shoal.edits.plan import Plan

LAYOUTS = {
    "swiglu": "stock", "swiglu:layout=code,width=8": "code", "ffn:form=paper,width=16": "code", "layer:layers=2": "stock",
    "free": "code",
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_run_ends_in_its_checkpoint(name, small, tmp_path):
    outcome = compress(recipe(small, replace=name), tmp_path / "run")
    layout = LAYOUTS[name]
    model = AutoModelForCausalLM.from_pretrained(outcome.model, trust_remote_code=layout == "code")
    assert model.config.num_hidden_layers == outcome.plan.after.layers == 4
    assert sum(p.numel() for p in model.parameters()) == outcome.plan.after.parameters
    assert outcome.evaluation.student.cost.parameters == outcome.plan.after.parameters
    assert json.loads((outcome.folder / "verification.json").read_text())["layout"] == layout
    assert ("trust_remote_code=True" in (outcome.model / "README.md").read_text()) == (layout == "code")
    assert len(outcome.trained) == 1 and outcome.evaluation.plain is not None
    (edit,) = Plan.load(outcome.folder / "plan.json").replacements
    assert edit.options.get("layout", "stock") == layout, "settled in the plan, so that it can be applied anywhere"
