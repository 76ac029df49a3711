"""Mutations of files that were sound: each is refused in one line, or means what it says. Seeded; the slow run has 10,000.

Accepted wrongly would be: a header that the safetensors library reads otherwise or not at all, a config that builds a model of
other layers than the weights have, a record that does not read back as itself.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from families import tiny_model
from safetensors import SafetensorError, safe_open
from text_world import word_tokenizer

from shoal.edits.plan import Plan
from shoal.engine.model_config import describe
from shoal.engine.shards import read_shard
from shoal.evaluate.tasks.task_files import load_task
from shoal.measure.anatomy import Anatomy
from shoal.measure.scan import Scan, ScanFile, TableHead
from shoal.recipes.recipe_file import load_recipe
from shoal.recipes.table import RECIPES
from shoal.run.folder import RunFolder, RunRecord, StageRecord
from shoal.text.corpus import open_corpus
from shoal.words.records import Provenance, stable_hash

QUICK, SLOW = 12, 10_000
SECONDS = 1500  # The slow run makes so many in all.

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**30, 10**4000, 0.5, -0.0, 1e308, float("inf"), float("nan"), "", "x",
    "../x", "/etc/hostname", "\x00", "\u202e", "\ud800", "x" * 5000, [], {}, [[]], [1, 2, 3], ["a"], {"a": 1}, {"0": [1]},
    [None], [True],
)  # fmt: skip


def mutated(content: Any, draw: random.Random) -> Any:
    """A copy of some JSON with one place changed: another value, gone, twice, under another key, or nested deep."""
    places = list(_places(content, ()))
    path = draw.choice(places)
    new = json.loads(json.dumps(content))
    parent = new
    for step in path[:-1]:
        parent = parent[step]
    if not path:
        return draw.choice(VALUES)
    what, key = draw.randrange(5), path[-1]
    if what == 0 and isinstance(parent, dict):
        del parent[key]
    elif what == 1 and isinstance(parent, list):
        parent.append(draw.choice([*parent, *VALUES]))
    elif what == 2 and isinstance(parent, dict):
        parent[draw.choice(["x", "", str(key).upper(), "layers", "0", "__metadata__"])] = parent.pop(key)
    elif what == 3:
        deep: Any = draw.choice(VALUES)
        for _ in range(draw.choice([1, 3, 150])):
            deep = [deep] if draw.random() < 0.5 else {"a": deep}
        parent[key] = deep
    else:
        parent[key] = draw.choice(VALUES)
    return new


def _places(content: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _places(value, (*path, key))
    elif isinstance(content, list):
        for i, value in enumerate(content[:6]):
            yield from _places(value, (*path, i))


def text_of(content: Any, draw: random.Random) -> bytes:
    """JSON with a mutation, and now and then with bytes of it changed, cut off or doubled."""
    raw = json.dumps(mutated(content, draw)).encode()
    for _ in range(draw.choice([0, 0, 0, 1, 3])):
        at = draw.randrange(max(1, len(raw)))
        raw = draw.choice([raw[:at], raw[:at] + bytes([draw.randrange(256)]) + raw[at + 1 :], raw[:at] + raw[at // 2 :]])
    return raw


class Sound:
    """Sound files of every kind in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tiny_model("llama", n_layers=3).save_pretrained(folder / "model")
        self.weights = (folder / "model" / "model.safetensors").read_bytes()
        self.config = json.loads((folder / "model" / "config.json").read_text())
        length = int.from_bytes(self.weights[:8], "little")
        self.header, self.data = json.loads(self.weights[8 : 8 + length]), self.weights[8 + length :]
        size = {"layers": 6, "parameters": 100}
        edits = [
            {"edit": "drop", "kind": "layer", "indices": [1, 2]},
            {"edit": "refit", "layer": 3, "parameters": ["a.weight"]},
        ]
        self.plan = {
            "source": "m", "source_hash": "0", "teacher": "m", "n_layers": 6, "edits": edits, "before": size, "after": size,
            "candidates": [], "method": "by hand",
        }  # fmt: skip
        Plan.from_json(json.dumps(self.plan))
        self.recipe = yaml.safe_load(RECIPES["default"].recipe.to_yaml())
        stages = {"scan": StageRecord(key="0", seconds=1.0, files=("scan.json",))}
        self.run = json.loads(RunRecord(version="1", stages=stages).to_json())
        self.scan = self._scan()
        self.tokenizer = word_tokenizer(40)
        self.written = {path.name: path.read_bytes() for path in (folder / "scan").iterdir()}

    def _scan(self) -> dict[str, Any]:
        import numpy as np
        from safetensors.numpy import save

        (self.folder / "scan").mkdir()
        values = save({f"cosine/rest.{name}": np.zeros((4, 4)) for name in ("values", "stderr")})
        (self.folder / "scan" / "scan.safetensors").write_bytes(values)
        anatomy = Anatomy(
            norm_rest=(1.0,) * 4, norm_rest_stderr=(0.0,) * 4, norm_sink=(1.0,) * 4, norm_sink_stderr=(0.0,) * 4,
            n_massive=(0,) * 4, n_sinks=1, n_tokens=9, n_zero=0, n_samples=1,
        )  # fmt: skip
        of = Provenance(
            model="m", model_hash="0", data="d", data_hash="1", n_samples=1, n_tokens=9, length=9, seed=0, dtype="float32"
        )
        head = TableHead(criterion="cosine", tokens="rest", unit="", higher_is_more_redundant=True, n_samples=1)
        file = ScanFile(values_hash=stable_hash(values), provenance=of, anatomy=anatomy, tables=(head,))
        file.save(self.folder / "scan" / "scan.json")
        return json.loads(file.to_json())


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return Sound(tmp_path_factory.mktemp("sound"))


# Each tries one mutation in ``folder``; returns whether it was accepted, and asserts that it then means what it says.


def try_header(sound: Sound, folder: Path, draw: random.Random) -> bool:
    text = text_of(sound.header, draw)
    path = folder / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + sound.data)
    found = read_shard(path)
    try:
        with safe_open(path, framework="pt") as file:
            theirs = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        pytest.fail(f"accepted what the library refuses ({error}): {text[:300]!r}")
    assert theirs == {name: slot.shape for name, slot in found.slots.items()}
    return True


def try_config(sound: Sound, folder: Path, draw: random.Random) -> bool:
    text = text_of(sound.config, draw)
    (folder / "config.json").write_bytes(text)
    shutil.copy(sound.folder / "model" / "model.safetensors", folder / "model.safetensors")
    found = describe(folder)
    assert found.n_layers == 3, text[:300]
    return True


def try_plan(sound: Sound, folder: Path, draw: random.Random) -> bool:
    (folder / "plan.json").write_bytes(text_of(sound.plan, draw))
    plan = Plan.load(folder / "plan.json")
    assert Plan.from_json(plan.to_json()) == plan and str(plan)
    assert all(0 <= layer < plan.n_layers for layer in plan.kept_layers)
    return True


def try_recipe(sound: Sound, folder: Path, draw: random.Random) -> bool:
    (folder / "recipe.yaml").write_bytes(text_of(sound.recipe, draw))
    recipe = load_recipe(str(folder / "recipe.yaml"))
    (folder / "again.yaml").write_text(recipe.to_yaml())
    assert load_recipe(str(folder / "again.yaml")) == recipe
    return True


def try_scan(sound: Sound, folder: Path, draw: random.Random) -> bool:
    for name, content in sound.written.items():
        (folder / name).write_bytes(content)
    (folder / "scan.json").write_bytes(text_of(sound.scan, draw))
    found = Scan.load(folder)
    assert all(table.values.shape == (found.n_layers + 1,) * 2 for table in found.tables.values())
    return True


def try_run(sound: Sound, folder: Path, draw: random.Random) -> bool:
    (folder / "run.json").write_bytes(text_of(sound.run, draw))
    found = RunFolder(folder, version="1")
    for stage in found.record.stages.values():
        for name in stage.files:
            assert (folder / name).resolve().is_relative_to(folder.resolve())
    return True


TASK_ROWS = (
    {"ctx": "w1 w2", "choices": [" w3", " w4"], "gold": 1}, {"ctx": "w5", "choices": [" w1", " w2", " w3"], "gold": 0},
    {"ctx": "w6 w7", "choices": [" w8", " w9"], "gold": 1},
)  # fmt: skip


def try_task(sound: Sound, folder: Path, draw: random.Random) -> bool:
    rows = [json.dumps(row).encode() for row in TASK_ROWS]
    rows[draw.randrange(3)] = text_of(draw.choice(TASK_ROWS), draw)
    (folder / "quiz.jsonl").write_bytes(b"\n".join(rows))
    task = load_task(folder / "quiz.jsonl")
    assert len(task.items) >= 1 and all(0 <= item.gold < len(item.choices) for item in task.items)
    return True


def try_text(sound: Sound, folder: Path, draw: random.Random) -> bool:
    turns = [{"role": "user", "content": "w1 w2 w3"}, {"role": "assistant", "content": "w4 w5 w6"}]
    row = draw.choice([{"text": "w1 w2 w3 w4"}, {"messages": turns}, {"instruction": "w1", "input": "w2", "output": "w3 w4"}])
    rows = [json.dumps(row).encode() for _ in range(40)]
    rows[draw.randrange(40)] = text_of(row, draw)
    name = draw.choice(["t.jsonl", "t.json", "t.txt", "t.csv"])
    (folder / name).write_bytes(b"\n".join(rows))
    samples = open_corpus(str(folder / name), sound.tokenizer, seed=0).samples("calibration", n=2, length=4, fewest=1)
    assert samples.ids_NT.max() < len(sound.tokenizer)
    return True


KINDS: dict[str, Callable[[Sound, Path, random.Random], bool]] = {
    "header": try_header, "config": try_config, "plan": try_plan, "recipe": try_recipe, "scan": try_scan, "run": try_run,
    "task": try_task, "text": try_text,
}  # fmt: skip


def attempt(kind: str, sound: Sound, folder: Path, seed: int) -> bool:
    """Whether the mutation was accepted; anything but a ValueError of one line is a fault."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        return KINDS[kind](sound, folder, random.Random(f"{kind} {seed}"))
    except ValueError as refusal:
        assert "\n" not in str(refusal) and str(refusal), repr(refusal)
        return False


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_mutations_of_every_kind(kind, sound, tmp_path):
    accepted = sum(attempt(kind, sound, tmp_path / "x", seed) for seed in range(QUICK))
    assert accepted < QUICK  # Some are refused, or nothing was tried.


@pytest.mark.slow
def test_ten_thousand_mutations(sound, tmp_path):
    until = time.monotonic() + SECONDS
    done = 0
    for seed in range(SLOW // len(KINDS) + 1):
        for kind in KINDS:
            attempt(kind, sound, tmp_path / "x", 1000 + seed)
            done += 1
        if time.monotonic() > until:
            break
    assert done >= 1000
