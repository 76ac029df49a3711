"""What a student says to transformers 4: the logits of version 5, family by family (``make prove``).

Rotary parameters are not the defaults here, so a reader that does not find them gives other logits. Version 4 lives in an
environment of its own.
"""

import copy
import json
import os
import subprocess

import numpy as np
import pytest
import torch
from families import FAMILIES, tiny_model
from test_surgery_rewrite import removal
from transformers import AutoModelForCausalLM

from shoal.checkpoint.rewrite import rewrite
from shoal.export.engines.table import ENGINES

OLD = ENGINES["transformers-4"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(OLD.interpreter() is None, reason=f"{OLD.name} is not installed: {OLD.install}"),
]
# Both versions run eager attention, but some families sum experts or biases in another order; wrong frequencies move logits by
# 4e-3 (granite, which divides them by 8) or more.
LIMIT = 3e-6
IDS = torch.arange(40).remainder(61).view(2, 20)

READER = """
import json, sys
import numpy as np, torch
from pathlib import Path
from transformers import AutoModelForCausalLM

found = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    student = folder / "student"
    model, info = AutoModelForCausalLM.from_pretrained(student, output_loading_info=True, attn_implementation="eager")
    assert not info["missing_keys"] and not info["unexpected_keys"], (folder, info)
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.from_numpy(np.load(folder / "ids.npy")), use_cache=False).logits.numpy()
    found[folder.name] = float(np.abs(logits - np.load(folder / "logits.npy")).max())
print(json.dumps(found))
"""


def with_other_frequencies(name):
    """A tiny model whose rotary frequencies are no reader's defaults."""
    model = tiny_model(name)
    config = copy.deepcopy(model.config)
    rotary = getattr(config, "rope_parameters", None)
    if not rotary:
        return model
    scaling = {} if name in ("phi3", "olmo2") else {"rope_type": "linear", "factor": 3.0}  # Old readers allow no such scaling.
    if "full_attention" in rotary:
        rotary["full_attention"].update(rope_theta=777.0, **scaling)
        rotary["sliding_attention"].update(rope_theta=333.0)
    else:
        rotary.update(rope_theta=777.0, **scaling)
    other = AutoModelForCausalLM.from_config(config).eval()
    other.load_state_dict(model.state_dict())
    return other


def test_every_family_says_the_same_in_version_4(tmp_path):
    for name in FAMILIES:
        folder = tmp_path / "all" / name
        with_other_frequencies(name).save_pretrained(folder / "source")
        if name == "qwen3_moe":  # Version 5 names the experts of the tiny model as version 4 does not.
            stated = json.loads((folder / "source" / "config.json").read_text())
            (folder / "source" / "config.json").write_text(json.dumps({**stated, "num_experts": 4}))
        rewrite(folder / "source", removal(1, 2), folder / "student")
        student = AutoModelForCausalLM.from_pretrained(folder / "student", attn_implementation="eager").eval()
        with torch.no_grad():
            np.save(folder / "logits.npy", student(input_ids=IDS, use_cache=False).logits.numpy())
        np.save(folder / "ids.npy", IDS.numpy())
    (tmp_path / "reader.py").write_text(READER)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    told = subprocess.run(
        [OLD.interpreter(), str(tmp_path / "reader.py"), str(tmp_path / "all")],
        capture_output=True, text=True, env=environment, check=True,
    )  # fmt: skip
    differences = json.loads(told.stdout.splitlines()[-1])
    assert differences.keys() == FAMILIES.keys()
    for name, difference in differences.items():
        assert difference <= LIMIT, (name, difference)
