"""An option that is not read is an error, a wrong reason is none, and an added token changes no text's tokens."""

import pytest
from safetensors.torch import load_file, save_file
from text_world import word_tokenizer
from world import N_WORDS, write_model

from shoal.evaluate.comparison import other_tokenizer


def one_line(code, err, *said):
    lines = [line for line in err.splitlines() if line.startswith("shoal: ")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in err, err
    assert all(word in lines[0] for word in said), lines[0]


UNREAD = {
    "--text": ("given.txt", "--text is not read"),
    "--samples": (8, "--samples is not read"),
    "--length": (16, "--length is not read"),
    "--seed": (1, "--seed is not read"),
    "--dtype": ("bfloat16", "--dtype is not read"),
    "--resident": (1, "--resident is not read"),
    "--by": ("angular/last", "--by angular/last is a score"),
    "--rounds": (2, "--rounds measures anew"),
}


@pytest.mark.parametrize("option", UNREAD)
def test_a_plan_from_config_alone_refuses_what_it_does_not_read(small, shoal, tmp_path, option):
    value, said = UNREAD[option]
    (tmp_path / "given.txt").write_text("a b c")
    code, _, err = shoal("plan", small["model"], "--recipe", "uidl-simple", "--drop", 2, "--out", "run", option, value)
    one_line(code, err, said)
    assert not (tmp_path / "run" / "plan.json").exists()


OUT_OF_REACH = [("--drop", 99), ("--drop", "99%"), ("--layers", 77), ("--params", "9B"), ("--protect", "0..5")]


@pytest.mark.parametrize("verb", ["plan", "compress"])
@pytest.mark.parametrize("asked", OUT_OF_REACH, ids=lambda asked: " ".join(map(str, asked)))
def test_a_run_that_is_refused_leaves_no_folder(small, shoal, tmp_path, verb, asked):
    text = () if verb == "plan" else ("--text", small["text"], "--length", 16)
    code, _, err = shoal(verb, small["model"], "--out", "run", *text, *asked)
    one_line(code, err)
    assert not (tmp_path / "run").exists()


OTHER_VERBS = {
    "curve": ("--drop", "0..99", "--length", 16),
    "heal": ("--teacher", "none", "--method", "qlora", "--length", 9999),
}


@pytest.mark.parametrize("verb", OTHER_VERBS)
def test_neither_does_another_verb(small, shoal, tmp_path, verb):
    code, _, err = shoal(verb, small["model"], "--out", "run", "--text", small["text"], *OTHER_VERBS[verb])
    one_line(code, err)
    assert not (tmp_path / "run").exists()


def test_a_refused_run_leaves_what_stands(small, shoal, tmp_path):
    assert shoal("plan", small["model"], "--layers", 3, "--out", "run")[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert shoal("plan", small["model"], "--layers", 77, "--out", "run", "--overwrite")[0] == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    (tmp_path / "empty").mkdir()
    assert shoal("plan", small["model"], "--layers", 77, "--out", "empty")[0] == 2
    assert (tmp_path / "empty").is_dir(), "a folder of the user's stays"


def test_a_score_beside_a_selector_that_reads_none_is_refused_everywhere(small, shoal):
    code, _, err = shoal("compress", small["model"], "--out", "run", "--select", "deepest", "--by", "angular/last")
    one_line(code, err, "--select deepest reads none")


UNHEARD = {
    "--rank of whole parameters": ("--method", "full", "--rank", 4),
    "--merge of whole parameters": ("--method", "norms", "--merge", "apart"),
    "--most-lost of whole parameters": ("--method", "full", "--most-lost", 0.1),
    "--dropout of whole parameters": ("--method", "full", "--dropout", 0.1),
    "--layers of adapters": ("--layers", 4),
    "--head of adapters": ("--head", "keep"),
    "--temperature of given text": ("--temperature", 0.5),
    "--teacher-cache of no teacher": ("--teacher-cache", 8),
    "--boundaries of an objective on logits": ("--boundaries", "every"),
}


@pytest.mark.parametrize("asked", UNHEARD)
def test_a_healing_refuses_what_it_does_not_read(small, shoal, tmp_path, asked):
    code, _, err = shoal("heal", small["model"], "--teacher", "none", "--out", "run", *UNHEARD[asked])
    one_line(code, err, f"{asked.split()[0]} is not read")
    assert not (tmp_path / "run").exists()


UNREAD_KEYS = {
    "heal: {method: full, rank: 16}": "heal.rank",
    "heal: {method: norms, merge: apart}": "heal.merge",
    "heal: {method: lora, layers: 4}": "heal.layers",
    "heal: {method: lora, prune_every: 9}": "heal.prune_every",
    "heal: {method: full, regrow_in: map, keep_zeros: true}": "heal.regrow_in",
    "heal: {temperature: 0.5}": "heal.temperature",
    "heal: {boundaries: every}": "heal.boundaries",
    "prune: {spread: 0.1}": "prune.spread",
    "prune: wanda:outlier=4": "prune.outlier",
    "repair: none\nfit: {tokens: 9000}": "fit",
    "fit: {solve: ratio}": "fit.solve",
    "train: {tokens: 9000}": "train",
    "merge: {group: 3}": "merge",
    "select: sliding\nmerge: {group: 3}": "merge.group",
    "select: laco\nsearch: {evaluations: 9}": "search.evaluations",
    "search: {tokens: 9000}": "search",
    "select: deepest\nby: cosine/rest": "by",
    "max_spans: 2": "max_spans",
    "grow: {to: 8}\nrepair: none\nselect: lowest": "select",
    "layers: 3\ntext: {samples: 9}": "text.samples",
    "grow: {to: 8}\nrepair: none\ntext: {samples: 9}": "text.samples",
    "layers: none\nrepair: none\nprune: magnitude\ntext: {samples: 9}": "text.samples",
    "select: deepest\nguard: 1\ntext: {samples: 9}": "text.samples",
    "select: deepest\nguard: 1\nobservers: cka": "observers",
    "select: greedy\nguard: 1\nobservers: cka": "observers",
    "layers: 3\nobservers: cka": "observers",
    "replace: layer\nrepair: none\ntrain: {several: joint}": "train.several",
}


@pytest.mark.parametrize("content", UNREAD_KEYS)
def test_a_key_of_a_recipe_file_that_nothing_reads_is_refused(content, tmp_path):
    from shoal.recipes.recipe_file import load_recipe

    path = tmp_path / "mine.yaml"
    path.write_text(content + "\n")
    with pytest.raises(ValueError, match=f"mine.yaml: {UNREAD_KEYS[content]} is not read: .*; leave it out"):
        load_recipe(str(path))


def test_a_key_is_read_where_an_option_brings_its_reader_and_no_fault_where_one_takes_it_away(tmp_path):
    from shoal.recipes.recipe_file import load_recipe

    path = tmp_path / "mine.yaml"
    path.write_text("train: {tokens: 9000}\n")
    assert load_recipe(str(path), {"polish": "kl"}).train.tokens == 9000
    path.write_text("polish: kl\ntrain: {tokens: 9000}\n")
    taken = load_recipe(str(path), {"polish": "none"})
    path.write_text(taken.to_yaml())
    assert "train:" not in path.read_text() and load_recipe(str(path)).polish == "none"


@pytest.mark.parametrize("fault", ["nan", "zero"])
def test_damaged_weights_are_named_as_such(small, shoal, tmp_path, fault):
    write_model(tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    if fault == "nan":
        tensors["model.norm.weight"][0] = float("nan")
    else:
        tensors = {name: value * 0 for name, value in tensors.items()}
    save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    options = ("--text", small["text"], "--length", 16, "--samples", 8)
    code, _, err = shoal("scan", "m", "--out", "run", *options)
    one_line(code, err, "NaN" if fault == "nan" else "exactly zero", "damaged")


def test_an_added_padding_token_is_no_other_tokenizer():
    plain, padded = word_tokenizer(N_WORDS), word_tokenizer(N_WORDS)
    padded.add_special_tokens({"pad_token": "[MORE]"})
    assert len(padded) == len(plain) + 1
    assert other_tokenizer(plain, padded) is None and other_tokenizer(padded, plain) is None
    assert "its tokenizer is another" in other_tokenizer(plain, word_tokenizer(N_WORDS - 5))


def test_a_student_with_an_added_padding_token_is_held_against_its_teacher(small, shoal, tmp_path):
    write_model(tmp_path / "student", n_layers=5, seed=1)
    tokenizer = word_tokenizer(N_WORDS)
    tokenizer.add_special_tokens({"pad_token": "[MORE]"})
    tokenizer.save_pretrained(tmp_path / "student")
    options = ("--text", small["text"], "--length", 16, "--samples", 8)
    code, _, err = shoal("eval", "student", "--teacher", small["model"], *options)
    assert code == 0, err


def test_samples_beside_named_layers_are_text_that_nothing_reads(small, shoal, tmp_path):
    code, _, err = shoal("compress", small["model"], "--layers", 2, "--samples", 8, "--text", small["text"], "--out", "run")
    one_line(code, err, "--samples", "the layers are named")
    assert not (tmp_path / "run").exists()


UNHEARD_OF_VERBS = {
    "prune, samples of a pruner that reads none": ("--samples", ("prune", "--method", "magnitude", "--samples", 8)),
    "compress, samples of a rule that measures nothing": (
        "--samples", ("compress", "--recipe", "uidl-simple", "--drop", 2, "--samples", 8)
    ),
    "curve, samples that no method reads": ("--samples", ("curve", "--methods", "uidl-simple", "--samples", 8)),
    "eval, the order of a text that is read whole": ("--seed", ("eval", "--whole", "--seed", 1)),
    "heal, layers in memory of no teacher": ("--resident", ("heal", "--teacher", "none", "--resident", 2)),
    "heal, speed beside no teacher": ("--no-speed", ("heal", "--teacher", "none", "--no-speed")),
}  # fmt: skip


@pytest.mark.parametrize("case", UNHEARD_OF_VERBS)
def test_an_option_that_this_use_of_a_verb_does_not_read_is_refused(small, shoal, tmp_path, case):
    option, (verb, *more) = UNHEARD_OF_VERBS[case]
    out = () if verb == "eval" else ("--out", "run")
    code, _, err = shoal(verb, small["model"], *out, "--text", small["text"], "--length", 16, *more)
    one_line(code, err, option)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("select", ["laco", "sliding"])
def test_a_selector_that_merges_brings_its_own_guard(select):
    from shoal.cli.recipe_options import with_options

    assert with_options("default", select=select).guard == 1
    with pytest.raises(ValueError, match="--guard 1"):
        with_options("default", select=select, guard=4)


def test_an_option_of_another_verb_names_that_verb_beside_what_is_near(shoal, tmp_path):
    """``--memory`` of compress was answered with --metric, and where it is was kept back."""
    code, _, err = shoal("compress", "model", "--memory", "--out", "out")
    assert code == 2 and "No such option: --memory" in err and "(plan has it; see 'shoal compress --help')" in err
