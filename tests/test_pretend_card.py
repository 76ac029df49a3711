"""What runs with ``--device cuda`` keeps its tensors on one device and gives the CPU's bits, on a card that is not there."""

import pytest
import torch
from pretend_card import pretend_card
from world import write_model

from shoal import compress, load_recipe
from shoal.engine.opening import Opening
from shoal.run.job import layers_in_memory
from shoal.run.memory_plan.needs import needs_of

TEXT = {"samples": 6, "length": 16, "selection": 4, "evaluation": 4}
CASES = {
    "layer, streamed": ("llama", "1", {"replace": "layer", "repair": "none", "train": {"tokens": 100}}),
    "experts, streamed": ("qwen3_moe", "1", {"repair": "sweep", "fit": {"tokens": 400}}),
    "linear map, all resident": (
        "llama",
        "all",
        {"replace": "linear", "repair": "solve", "polish": "hidden", "train": {"tokens": 100}},
    ),
    "logits, padded": ("llama", "6", {"repair": "refit", "polish": "kl", "train": {"tokens": 100}, "observers": ["cka"]}),
}


def test_the_pretended_card_refuses_two_devices():
    with pretend_card():
        ours = torch.ones(2, device="cuda")
        assert ours.device == torch.device("cuda", 0) and (ours + 1).device == ours.device and ours.cpu().device.type == "cpu"
        with pytest.raises(RuntimeError, match="on the card and on the CPU"):
            ours + torch.ones(2)
        with pytest.raises(TypeError):
            ours.numpy()


@pytest.mark.parametrize(
    "case", [case if case == "layer, streamed" else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_a_run_stays_on_the_card_and_equals_that_of_the_cpu(case, small, tmp_path):
    family, resident, changes = CASES[case]
    model = small["model"] if family == "llama" else str(write_model(tmp_path / "source", family=family))
    text = {**TEXT, "sources": [small["text"]], "packing": "padded" if "padded" in case else "packed"}
    recipe = load_recipe("default", {"model": model, "drop": "2", "guard": 2, "text": text, **changes})
    on_cpu = compress(recipe, tmp_path / "cpu", opening=Opening(resident=resident))
    with pretend_card(free=0 if "layer" in case else 1 << 30):  # Without room on the card states wait in pinned memory.
        on_card = compress(recipe, tmp_path / "card", opening=Opening(device="cuda", resident=resident))
    assert on_card.evaluation.quality == on_cpu.evaluation.quality
    for file in (tmp_path / "cpu").glob("**/*.safetensors"):
        if file.name != "checkpoint.safetensors":  # The header of the file has seconds.
            assert file.read_bytes() == (tmp_path / "card" / file.relative_to(tmp_path / "cpu")).read_bytes(), file


def test_auto_asks_the_card(small):
    for free, expected in ((1 << 30, None), (1000, 2)):
        with pretend_card(free=free):
            assert layers_in_memory(small["model"], Opening(device="cuda")) == expected


def test_the_plan_counts_the_cards_memory_and_the_machines_beside_it(small):
    changes = {"model": small["model"], "drop": "2", "text": {"length": 16, "samples": 10**4}, "replace": "layer"}
    recipe, found = load_recipe("default", changes), {}
    for free in (1 << 40, 10**6):
        with pretend_card(free=free):
            found[free] = needs_of(recipe, Opening(resident="1", device="cuda"))
    large, full = (found[free] for free in found)
    assert large.fits and not full.fits and full.free_host is not None and full.free_host > full.free_memory
    scans = [one.stages[0] for one in (large, full)]
    assert scans[0].host < scans[1].host and not scans[1].scratch  # States that the card has no room for wait in memory.
    assert sum(scans[0].parts.values()) == scans[0].memory
