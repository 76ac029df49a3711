"""The card says what the plan did and what was measured, in the form the hub reads."""

import re

import pytest
import torch
import yaml
from families import VOCAB, tiny_model
from huggingface_hub import ModelCard

from shoal.edits.drop import Drop
from shoal.edits.insert import Insert
from shoal.edits.plan import Candidate, Plan
from shoal.edits.prune import Prune
from shoal.edits.refit import Refit
from shoal.edits.replace.replace_edit import Replace
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.evaluate.evaluation import compare
from shoal.evaluate.generate import Generation
from shoal.evaluate.speed import speed
from shoal.recipes.listing import bibtex
from shoal.recipes.table import RECIPES
from shoal.show.before_after import before_after
from shoal.show.card import card, inherited_metadata, source_name, tags_of
from shoal.show.figure_tables import figures
from shoal.show.heal_card import heal_card
from shoal.show.local_paths import without_folders
from shoal.train.config import TrainConfig
from shoal.train.heal.config import HealConfig
from shoal.train.heal.result import HealTraining, Merging
from shoal.train.train_result import CurvePoint, TrainResult
from shoal.words.records import Provenance
from shoal.words.structure import Size
from shoal.words.types import Batch, Unit


def made_plan(*edits, **rest):
    sizes = dict(before=Size(layers=4, parameters=1000), after=Size(layers=3, parameters=800))
    return Plan(source="org/model", source_hash="abc", teacher="org/model", n_layers=4, edits=edits, **sizes, **rest)


PLAN = made_plan(
    Drop(indices=(2,)),
    method="best span by cosine",
    candidates=(
        Candidate(edits=(Drop(indices=(2,)),), proposed_by=("cosine/rest", "a|b"), kl=0.125, perplexity=7.5),
        Candidate(edits=(Drop(indices=(1,)),), proposed_by=("angular/last",), kl=0.25),
    ),
)


@pytest.fixture(scope="module")
def evaluation():
    ids_BT = torch.randint(3, VOCAB, (3, 9), generator=torch.Generator().manual_seed(5))
    view = DecoderView(tiny_model("llama", n_layers=4))
    source = Provenance(
        model="org/model", model_hash="m0", data="books", data_hash="d0", n_samples=3, n_tokens=27, length=9, seed=7,
        dtype="float32", versions={"torch": "2.13.0"},
    )  # fmt: skip
    said = (Generation(prompt="Once", teacher="upon ```a``` time", student="more | less", n_agreed=2, n_tokens=9),)
    student = Student(frozenset({Unit("layer", 2)}))
    timed = speed(view, view, prompt_length=4, new_tokens=2, rounds=1, warmup=0)
    return compare(view, student, [Batch(ids_BT)], provenance=source, generated=said, timed=timed)


def text_of(evaluation, plan=PLAN, **rest):
    rest.setdefault("command", "shoal compress org/model --drop 25%")
    return card(plan, evaluation, recipe_name="uidl", **rest)


def test_front_matter_is_what_the_hub_reads(evaluation):
    data = ModelCard(text_of(evaluation, inherited={"license": "apache-2.0", "language": ["en"], "other": 1})).data.to_dict()
    assert data["base_model"] == "org/model" and data["library_name"] == "transformers"
    assert data["license"] == "apache-2.0" and data["language"] == ["en"] and "shoal" in data["tags"] and "other" not in data


def test_no_licence_is_claimed_that_the_source_does_not_state(evaluation):
    assert "license" not in yaml.safe_load(text_of(evaluation).split("---")[1])


def test_every_figure_is_on_the_card(evaluation):
    text = text_of(evaluation)
    for row in figures(evaluation).texts:
        assert f"| {' | '.join(row)} |" in text
    for figure in ("20.0 % fewer parameters", "1,000 → 800", "0.125", "7.5", "seed: 7", "hash `d0`", "torch 2.13.0", "bound"):
        assert figure in text


def bought(text):
    return next((line for line in text.splitlines() if line.startswith("- It buys")), "")


def test_what_is_switched_off_and_still_stored_buys_no_memory(evaluation):
    """The weights are those of the files, which keep the zeros and the cache of what is off."""
    sides = {
        side: getattr(evaluation, side).model_copy(update={"cost": getattr(evaluation, side).cost.model_copy(update=size)})
        for side, size in {"teacher": {"file_bytes": 4000}, "student": {"file_bytes": 3000}}.items()
    }
    found = evaluation.model_copy(update=sides)
    text = text_of(found, made_plan(Drop(indices=(2,)), Drop(kind="attn", indices=(1,))))
    assert "**Weights x 0.75** (4 kB → 3 kB of files)" in bought(text) and "KV cache" not in bought(text)
    assert "keeps attention of 1 with an output map of zeros" in text
    assert "Weights" not in bought(text_of(evaluation, made_plan(Drop(kind="attn", indices=(1,))))), "no file was measured"
    assert "KV cache x 0.75" in bought(text_of(found)) and "map of zeros" not in text_of(found)


def test_a_model_that_grew_costs_its_speed_and_its_sizes(evaluation):
    sizes = {"before": Size(layers=4, parameters=800), "after": Size(layers=5, parameters=1000)}
    grown = made_plan(Insert(after=1, init="copy", of=(1,))).model_copy(update=sizes)
    text = text_of(evaluation, grown)
    (costs,) = (line for line in text.splitlines() if line.startswith("- It costs"))
    assert bought(text) == "" and all(f"**{what} x" in costs for what in ("Decoding speed", "Weights", "KV cache"))


def test_tables_have_one_width(evaluation):
    text = text_of(evaluation)
    tables = re.findall(r"(?:^\|.*\|\n?)+", text, re.MULTILINE)
    assert len(tables) == 2
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.strip().splitlines()}) == 1


def test_code_blocks_hold_whatever_a_model_wrote(evaluation):
    text = text_of(evaluation)
    assert "````\nupon ```a``` time\n````" in text and "```\nmore | less\n```" in text


def test_how_to_load_is_python(evaluation):
    code = re.search(r"```python\n(.*?)```", text_of(evaluation), re.DOTALL)[1]
    compile(code, "card", "exec")
    assert "AutoModelForCausalLM.from_pretrained" in code and "trust_remote_code" not in code


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ((Drop(indices=(1, 2)),), "layers 1..2: removed"),
        ((Drop(kind="attn", indices=(0, 2)),), "attention of layers 0, 2: removed"),
        ((Replace(start=1, stop=3, replacement="layer"),), "layers 1..2: replaced by one `layer`"),
        ((Drop(indices=(3,)), Refit(layer=2, parameters=("mlp.down_proj.weight",))), "new values for `mlp.down_proj.weight`"),
    ],
)
def test_every_edit_is_named(evaluation, edits, said):
    assert said in text_of(evaluation, made_plan(*edits))


def test_pure_removal_comes_with_the_same_cut_for_mergekit(evaluation):
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text_of(evaluation), re.DOTALL)[1])
    ranges = [source["layer_range"] for part in recipe["slices"] for source in part["sources"]]
    assert [layer for start, stop in ranges for layer in range(start, stop)] == [0, 1, 3]
    assert "The cut before it was trained, for mergekit" in text_of(evaluation, healed="lora on 4,096 tokens")
    assert "mergekit" not in text_of(evaluation, made_plan(Replace(start=1, stop=3, replacement="layer")))


def test_citations_are_those_of_the_method(evaluation):
    text = text_of(evaluation, citations=[bibtex("2403.17887"), bibtex("2403.03853")])
    assert "Gromov" in text and "ShortGPT" in text and "Streamlining" not in text
    assert "bibtex" not in text_of(evaluation)


@pytest.mark.parametrize("arxiv", [*sorted({paper for one in RECIPES.values() for paper in one.recipe.papers}), "1234.56789"])
def test_bibtex_is_balanced_and_names_its_paper(arxiv):
    entry = bibtex(arxiv)
    assert entry.count("{") == entry.count("}") and f"arXiv:{arxiv}" in entry and entry.startswith("@")


def test_sections_without_content_are_left_out(evaluation):
    bare = evaluation.model_copy(update={"generations": (), "speed": None})
    text = text_of(bare, made_plan(Drop(indices=(2,))))
    assert "generations" not in text and "Candidates" not in text and "Speed" not in text and "How it was chosen" not in text


def test_training_is_said_with_its_text_and_tokens(evaluation):
    point = CurvePoint(step=0, tokens=0, lr=0.1, loss=None, grad_norm=None, validation=1.0, quality=None, seconds=0.0)
    result = TrainResult(
        start=1, stop=3, trained=("replacement of layers 1..2",), objective="hidden_mse",
        decided_by="validation", best_step=0, n_steps=5, n_tokens=12_345, n_parameters=7,
        seconds=1.0, data="training books", data_hash="t0", config=TrainConfig(), curve=(point,),
    )  # fmt: skip
    text = text_of(evaluation, made_plan(Replace(start=1, stop=3, replacement="layer")), trained=[result])
    assert "training books, hash `t0`, 12,345 tokens for replacement of layers 1..2" in text
    assert "training text" not in text_of(evaluation)


def test_a_run_without_a_command_line_points_to_its_recipe(evaluation):
    section = text_of(evaluation, command="").split("## How to make it again")[1].split("##")[0]
    assert "recipe.yaml" in section and "```bash" not in section


@pytest.mark.parametrize(
    ("readme", "found"),
    [
        ("---\nlicense: other\nlicense_name: house\ntags: [x]\n---\n# hi", {"license": "other", "license_name": "house"}),
        ("---\nlicense: mit\n---", {"license": "mit"}),
        ("# no metadata\n---\nlicense: mit\n---\n", {}),
        ("---\nlicense: [unclosed\n---\n", {}),
        ("---\nlicense: 2024-99-99\n---\n", {}),
        ("---\nlicense: 2024-01-01\nlanguage: [en, {a: b}]\n---\n", {}),
        (f"---\nlicense: {'[' * 5000}\n---\n", {}),
        ("---\njust text\n---\n", {}),
        (None, {}),
    ],
)
def test_licence_comes_from_the_card_of_the_source(tmp_path, readme, found):
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    assert inherited_metadata(tmp_path) == found


def test_source_names_do_not_show_where_things_lie_on_a_machine(tmp_path, monkeypatch):
    local = tmp_path / "my-model"
    local.mkdir()
    assert source_name(str(local)) == "my-model"
    assert source_name("org/model-1.5") == "org/model-1.5" and source_name("gpt2") == "gpt2"
    assert source_name("/cache/models--org--name/snapshots/0a1b") == "org/name"
    monkeypatch.chdir(local)
    assert source_name(".") == "my-model"


def test_the_card_publishes_no_place_of_this_machine(evaluation):
    data = "0.7*/home/me/secret/a.txt+0.3*~/more/b.jsonl and hub:org/text"
    provenance = evaluation.provenance.model_copy(update={"data": data, "model": "/home/me/models/teacher"})
    command = "shoal compress /home/me/models/teacher --text '/home/me/my texts/a.txt' --out ../out --recipe default --drop 25%"
    card = text_of(evaluation.model_copy(update={"provenance": provenance}), command=command)
    assert "/home" not in card and "secret" not in card and "~/" not in card and "my texts" not in card
    assert "shoal compress teacher --text a.txt --out out --recipe default --drop 25%" in card
    assert "0.7\\*a.txt+0.3\\*b.jsonl and hub:org/text" in card


PRUNED = Prune(layer=1, parameters=("mlp.down_proj.weight",), method="wanda")


@pytest.mark.parametrize(
    ("edits", "tags"),
    [
        ((Drop(indices=(2,)),), {"depth-pruning", "layer-pruning", "model-compression"}),
        ((Drop(kind="attn", indices=(2,)),), {"depth-pruning", "layer-pruning", "model-compression"}),
        ((Drop(indices=(2,)), PRUNED), {"depth-pruning", "layer-pruning", "model-compression"}),
        ((PRUNED,), {"pruning"}),
        ((Insert(after=1, init="copy", of=(1,)),), {"depth-up-scaling"}),
        ((), set()),
    ],
)
def test_tags_say_what_became_of_the_layers(edits, tags):
    assert set(tags_of(made_plan(*edits))) == tags | {"shoal"}
    assert tags_of(None) == ("shoal",)


def test_a_base_model_is_one_that_the_hub_has(evaluation, tmp_path):
    local = tmp_path / "gpt2"
    local.mkdir()
    for source, wanted in ((str(local), None), ("gpt2", "gpt2"), ("/cache/models--org--name/snapshots/0a1b", "org/name")):
        data = ModelCard(text_of(evaluation, PLAN.model_copy(update={"source": source}))).data.to_dict()
        assert data.get("base_model") == wanted, "the folder's name is not somebody's model"


def healed_card(evaluation, **rest):
    training = HealTraining(
        method="lora", objective="forward_kl", decided_by="kl", best_step=1, n_steps=1, n_tokens=64, n_trainable=7,
        n_parameters=9, lr=0.1, tokens_per_second=1.0, peak_bytes=1, data="/home/me/secret/a.txt", data_hash="t0",
        config=HealConfig(), curve=(),
    )  # fmt: skip
    measured = evaluation.provenance.model_copy(update={"data": "/home/me/secret/b.txt", "model": "/home/me/models/teacher"})
    given = {"figures": before_after(evaluation.quality, evaluation), "measured": measured, "has_teacher": True}
    given |= {"command": "shoal heal /home/me/runs/cut --text /home/me/secret/a.txt", "inherited": {}, "plan": PLAN}
    given["brings_code"] = False
    return heal_card("/home/me/runs/cut", training, Merging(way="original", nll=1.0, kl=1.0), **given | rest)


def test_the_card_of_a_healing_publishes_no_place_of_this_machine(evaluation):
    text = healed_card(evaluation)
    assert "/home" not in text and "secret" not in text and "shoal heal cut --text a.txt" in text
    assert "training text: a.txt, hash" in text and "evaluation text: b.txt, hash" in text and "base_model" not in text


def test_the_card_of_a_healing_says_what_the_student_needs(evaluation):
    stock, coded = healed_card(evaluation), healed_card(evaluation, brings_code=True, plan=None)
    assert "A stock checkpoint" in stock and "trust_remote_code" not in stock and "- depth-pruning" in stock
    assert "A stock checkpoint" not in coded and "trust_remote_code=True" in coded and "pruning" not in coded


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("the bundled sample", "the bundled sample"),
        ("hub:org/name:conf:test", "hub:org/name:conf:test"),
        ("mix:slimpajama=/data/pajama", "mix:slimpajama=pajama"),
        ("C:\\texts\\a.txt", "a.txt"),
        ("texts/a.txt", "texts/a.txt"),
        ("/a/b/c.txt and ./d/e.txt", "c.txt and e.txt"),
        ("/", "/"),
    ],
)
def test_names_of_texts_for_others(name, said):
    assert without_folders(name) == said
