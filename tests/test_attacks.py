"""Inputs made to do harm: each is one line and exit code 2, nothing is lost, and nothing half-written stays behind."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from test_unread_options import one_line

from shoal.show.clean_text import clean
from shoal.show.html import escape
from shoal.show.markdown import coded, fenced, words


def with_nan(model):
    path = model / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.5.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})


def stating(**fields):
    def write(model):
        path = model / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return write


def holding(name, content):
    def write(model):
        (model / name).unlink(missing_ok=True)
        (model / name).mkdir() if content is None else (model / name).write_bytes(content)

    return write


DAMAGED = {
    "a weight of NaN": (with_nan, "holds NaN"),
    "a norm that makes NaN": (stating(rms_norm_eps=-1e9), "NaN or infinite"),
    "a tokenizer of something else": (holding("tokenizer.json", b'{"a": 1}'), "states no 'model'"),
    "an empty tokenizer": (holding("tokenizer.json", b""), "not valid JSON"),
    "a folder as a tokenizer": (holding("tokenizer.json", None), "is a folder"),
    "a list as options of the tokenizer": (holding("tokenizer_config.json", b"[]"), "an object is needed"),
    "bytes as options of generation": (holding("generation_config.json", b"\xff\xfe\x00"), "not valid JSON"),
    "a quantisation without a method": (stating(quantization_config={}), "names no method"),
    "a method that is a list": (stating(quantization_config={"quant_method": ["gptq"]}), "names no method"),
    "a pointer of Git LFS": (holding("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
}
VERBS = {
    "scan": ("--length", 16),
    "apply": ("--layers", 2),
    "compress": ("--drop", 2, "--length", 16, "--repair", "none", "--guard", 1, "--resident", 1),
    "export": (),
    "heal": ("--teacher", "none", "--length", 16, "--tokens", "1k"),
    "analyse": ("--length", 16),
}
READS_TEXT = ("scan", "compress", "heal", "analyse")


@pytest.mark.in_turn(2)
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_model_is_one_line_and_leaves_nothing(small, shoal, tmp_path, damage, verb):
    if (verb, damage) == ("heal", "a norm that makes NaN"):
        pytest.skip("weights are sound, so the loss says it first, and keeps its folder to go on from with another rate")
    harm, said = DAMAGED[damage]
    model = shutil.copytree(small["model"], tmp_path / "model")
    harm(model)
    before = ("export", "hf") if verb == "export" else (verb,)
    text = ("--text", small["text"]) if verb in READS_TEXT else ()
    code, _, err = shoal(*before, model, "--out", "out", *text, *VERBS[verb])
    one_line(code, err, said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


PLACES = {
    "below a file": ("file/x", ""),
    "a file": ("file", ""),
    "inside the model": ("model/sub", "inside"),
    "where nothing can be": ("/proc/x", "cannot be made"),
    "of too many folders": ("a/" * 2000, "folders"),
    "at the home of nobody": ("~nouser/x", "which is not known here"),
}


@pytest.mark.parametrize("verb", ["apply", "scan", "export", "compress"])
@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_takes_no_result_is_one_line(small, shoal, tmp_path, place, verb):
    out, said = PLACES[place]
    model = shutil.copytree(small["model"], tmp_path / "model")
    (tmp_path / "file").write_text("mine")
    before = ("export", "hf") if verb == "export" else (verb,)
    text = ("--text", small["text"]) if verb in READS_TEXT else ()
    code, _, err = shoal(*before, model, *text, *VERBS[verb], "--out", out)
    one_line(code, err, said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "model"]
    assert (tmp_path / "file").read_text() == "mine" and not (model / "sub").exists()


def test_a_home_is_expanded_wherever_a_path_is_given(small, shoal, tmp_path, monkeypatch):
    """A shell leaves the ~ of ``--out=~/x`` as it is, and a folder of that name was made."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    shutil.copytree(small["model"], tmp_path / "home" / "model")
    assert shoal("apply", "~/model", "--layers", 2, "--out=~/x")[0] == 0
    assert (tmp_path / "home" / "x" / "model.safetensors").exists() and not list(tmp_path.glob("~*"))
    for args in (("scan", "~nouser/m", "--out", "o"), ("scan", small["model"], "--text", "~nouser/t.txt", "--out", "o")):
        code, _, err = shoal(*args)
        one_line(code, err, "nouser", "not known here")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


def test_too_little_text_leaves_no_folder(small, shoal, tmp_path):
    (tmp_path / "little.txt").write_text("w1 w2 w3")
    for verb in READS_TEXT:
        code, _, err = shoal(verb, small["model"], "--text", "little.txt", *VERBS[verb], "--out", "out")
        one_line(code, err, "too little text")
        assert not (tmp_path / "out").exists()


def test_text_that_cannot_rank_candidates_is_refused_before_the_scan(small, shoal, tmp_path):
    """The slice that decides ran out only after the scan, in a folder that was then in the way."""
    text = {"sources": [str(small["text"])], "length": 16, "samples": 8, "selection": 10**6, "evaluation": 8}
    recipe = {"model": str(small["model"]), "drop": "2", "repair": "none", "text": text}
    (tmp_path / "compared.yaml").write_text(json.dumps({**recipe, "guard": 2}))
    code, _, err = shoal("run", "compared.yaml", "--no-speed", "--out", "out")
    one_line(code, err, "too little text", "'selection'")
    assert not (tmp_path / "out").exists()
    (tmp_path / "first.yaml").write_text(json.dumps({**recipe, "guard": 1}))
    code, _, err = shoal("run", "first.yaml", "--no-speed", "--out", "out")
    assert code == 0, f"nothing reads that slice where no candidates are compared: {err}"
    (tmp_path / "trains.yaml").write_text(json.dumps({**recipe, "guard": 1, "replace": "layer", "train": {"tokens": 10**6}}))
    code, _, err = shoal("run", "trains.yaml", "--no-speed", "--out", "trained")
    one_line(code, err, "too little text", "'training'")
    assert not (tmp_path / "trained").exists()


def test_an_export_whose_check_fails_keeps_the_file_that_stands(small, tmp_path, monkeypatch):
    from dataclasses import replace

    from shoal.export import table
    from shoal.export.exporter import Options

    def fails(student, done):
        raise ValueError(f"{done.path} is not the student")

    # A format that writes a folder is refused before its check where a file stands, so this one does not say that it does.
    one = replace(table.EXPORTERS["hf"], verify=fails, writes_folder=lambda out: False)
    monkeypatch.setitem(table.EXPORTERS, "hf", one)
    (tmp_path / "out").write_text("a file that was good")
    with pytest.raises(ValueError, match=f"^{tmp_path}/out is not the student$"):
        table.export("hf", small["model"], tmp_path / "out", Options(overwrite=True))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "a file that was good"


def test_charts_are_not_written_where_a_link_leads(small, shoal, tmp_path):
    run = ("compress", small["model"], "--text", small["text"], *VERBS["compress"][:-2], "--no-speed", "--out", "run")
    assert shoal(*run)[0] == 0
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "figures").symlink_to(tmp_path / "elsewhere")
    code, _, err = shoal("report", "run")
    one_line(code, err, "is a link")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("mark", ["\x1b[31m", "\u202e", "\u2066", "\x07", "\ud800"])
def test_no_mark_that_acts_reaches_terminal_page_or_card(mark):
    """An escape sequence, marks that turn the text behind them, a bell, half a character."""
    for shown in (clean, escape, words, coded, fenced):
        assert mark[0] not in shown(f"a{mark}b") and "\ufffd" in shown(f"a{mark}b")
