"""On a real card: the same bits wherever layers live, the CPU's figures up to rounding. Skipped where there is none."""

import pytest
import torch
from families import VOCAB, tiny_model

from shoal import compress, load_recipe
from shoal.engine.open import open_model
from shoal.engine.opening import Opening
from shoal.engine.passes import run_pass
from shoal.engine.spill import Spill
from shoal.engine.streamed import open_streamed
from shoal.engine.student import TEACHER, Student
from shoal.engine.view import DecoderView
from shoal.measure.scan import scan
from shoal.words.records import Provenance
from shoal.words.types import Batch, Unit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

IDS = torch.randint(3, VOCAB, (4, 4, 24), generator=torch.Generator().manual_seed(0))
BATCHES = [Batch(ids_BT, None, index) for index, ids_BT in enumerate(IDS)]
FACTS = Provenance(model="", model_hash="", data="", data_hash="", n_samples=0, n_tokens=0, length=24, seed=0, dtype="float32")
STUDENTS = [TEACHER, Student(frozenset({Unit("layer", 2)})), Student(frozenset({Unit("attn", 3), Unit("layer", 1)}))]


@pytest.fixture(scope="module", params=["llama", "qwen3_moe", "gemma3_text"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    tiny_model(request.param).save_pretrained(folder, max_shard_size="20KB")
    return folder


def views(folder, *, n_resident=1, device="cuda"):
    opened, streamed = open_streamed(folder, Opening(device=device), n_resident=n_resident)
    return DecoderView(open_model(folder, Opening(device=device)).model), DecoderView(opened.model, residency=streamed)


def finals(view):
    found = []
    run_pass(view, BATCHES, students=STUDENTS, sink=lambda reading, states: found.extend(one.cpu() for one in states))
    return found


@pytest.mark.parametrize("n_resident", [1, 3])
def test_a_streamed_pass_has_the_bits_of_the_resident_one(folder, n_resident):
    whole, streamed = views(folder, n_resident=n_resident)
    assert all(torch.equal(a, b) for a, b in zip(finals(whole), finals(streamed), strict=True))


def test_a_scan_has_the_cpus_values_up_to_rounding_and_one_set_of_bits_on_the_card(folder):
    whole, streamed = views(folder)
    on_cpu, *on_card = (scan(v, BATCHES, provenance=FACTS) for v in (DecoderView(open_model(folder).model), whole, streamed))
    for name, table in on_cpu.tables.items():
        ours, theirs = (torch.tensor(one.tables[name].values) for one in on_card)
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num()), name
        # Products are fp32 in another order, and angles near 0 are roots of them.
        torch.testing.assert_close(ours, torch.tensor(table.values), rtol=1e-3, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("limits", [(1 << 30, 1 << 30), (1 << 30, 0), (0, 0)], ids=["card", "pinned memory", "file"])
def test_states_come_back_as_they_were_wherever_they_wait(limits):
    limit, card_limit = limits
    spill = Spill(limit, card_limit=card_limit)
    states = [torch.randn(2, 7, 33, device="cuda", dtype=torch.bfloat16) for _ in range(50)]
    for _ in range(3):  # Places are taken again while copies of them may be under way.
        for key, state in enumerate(states):
            spill.put(key, state * 1)
        for key, state in enumerate(states):
            found = spill.get(key)
            assert found.device == state.device and torch.equal(found, state)
    spill.close()


CASES = {
    "sweep": {"repair": "sweep", "fit": {"tokens": 400}},
    "layer": {"replace": "layer", "repair": "none", "train": {"tokens": 200}},
    "kl": {"repair": "refit", "polish": "kl", "fit": {"tokens": 400}, "train": {"tokens": 200}},
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_on_the_card_is_the_cpus_up_to_rounding(case, small, tmp_path):
    """Fit, training, generations, speed, verification; resident and streamed."""
    text = {"sources": [small["text"]], "samples": 6, "length": 16, "selection": 4, "evaluation": 4}
    recipe = load_recipe("default", {"model": small["model"], "drop": "2", "guard": 2, "text": text, **CASES[case]})
    held = "6" if case == "kl" else "1"  # On logits every layer behind the cut runs at every step.
    runs = {"cpu": ("cpu", "all"), "card": ("cuda", "all"), "streamed": ("cuda", held)}
    done = {
        name: compress(recipe, tmp_path / name, opening=Opening(device=where, resident=layers))
        for name, (where, layers) in runs.items()
    }
    kl = {name: one.evaluation.quality.kl for name, one in done.items()}
    assert done["cpu"].plan.edits == done["card"].plan.edits == done["streamed"].plan.edits
    # Both are fp32, and in training the rounding of every step goes into the next.
    assert kl["card"] == pytest.approx(kl["cpu"], rel=1e-2) and kl["streamed"] == pytest.approx(kl["card"], rel=1e-2)
    speed = done["card"].evaluation.speed
    assert speed is not None and speed.teacher.peak_bytes > 0 and "cpu" not in speed.device
    if case == "sweep":  # The order of sums of a card has no part in it.
        ours, theirs = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("card", "streamed"))
        assert ours == theirs
