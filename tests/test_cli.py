"""The command: one clear line and exit 2 for what the user can mend, JSON on stdout, tables for people elsewhere."""

import errno
import functools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from cli_world import copied, edit_weights, one_line, options
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from world import write_model, write_text

from shoal.cli import main
from shoal.edits.plan import Plan
from shoal.edits.replace.table import REPLACEMENTS
from shoal.engine.open import DTYPES
from shoal.recipes.table import RECIPES
from shoal.select.table import SELECTORS
from shoal.text.mixture import PRESETS


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_model(folder / "model")
    write_text(folder / "text.jsonl")
    return folder


def file(name, content):
    def make(tmp_path):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    make.__name__ = name
    return make


TEXTS = {
    file("empty.txt", b""): "empty.txt",
    file("blank.txt", b" \n\n \n"): "blank.txt",
    file("binary.txt", bytes(range(256)) * 64): "binary.txt",
    file("short.txt", b"w1 w2 w3"): "needed",
    file("text.docx", b"w1 w2 w3"): ".jsonl",
    file("broken.jsonl", b'{"text": "w1"}\n{"text": \n'): "line 2",
    file("other.jsonl", b'{"txt": "w1"}\n'): "text",
}


@pytest.mark.parametrize("make", TEXTS, ids=lambda make: make.__name__)
def test_wrong_text_is_one_clear_line(make, world, shoal, tmp_path):
    (tmp_path / "in").mkdir()
    text = make(tmp_path / "in")
    code, _, err = shoal("scan", world / "model", "--out", "out", "--text", text, "--length", 16)
    one_line(code, err, TEXTS[make])


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--drop", "0%"], "--drop"),
        (["--drop", "100%"], "--drop"),
        (["--drop", "99%"], "allows"),
        (["--drop", "6"], "allows 1..4"),
        (["--drop", "many"], "25%layers"),
        (["--drop", "5%layers"], "allows"),
        (["--params", "9B"], "--params 9B is not below"),
        (["--params", "big"], "--params"),
        (["--params", "20K", "--drop", "2"], "one of them"),
        (["--device", "meta"], "meta"),
        (["--recipe", "uidll"], "did you mean 'uidl'"),
        (["--replace", "lyer"], "'layer'"),
        (["--select", "spam"], "'span'"),
        (["--by", "cosin/rest"], "cosine/rest"),
        (["--guard", "0"], "guard"),
        (["--protect", "x"], "--protect"),
        (["--protect", "17"], "protect=17"),
        (["--protect", "0,1,2,3,4,5"], "protect fewer"),
        (["--length", "100000"], "window"),
        (["--samples", "100000"], "needed"),
        (["--train-tokens", "1000000000", "--replace", "layer"], "needed"),
        (["--train-tokens", "1000"], "nothing is trained"),
        (["--replace", "none", "--fit-tokens", "1000"], "--repair auto"),
        (["--effort", "lowest"], "low, default, high"),
        (["--effort", "high", "--recipe", "uidl"], "two methods"),
        (["--device", "gpu"], "gpu"),
        (["--dtype", "int3"], "int3"),
        (["--text", "nowhere.txt"], "nowhere.txt"),
        (["--frobnicate"], "--frobnicate"),
        (["--lr", "-1"], "lr"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_wrong_option_is_one_clear_line(args, said, world, shoal):
    given = [arg for arg in options(world) if arg is not None]
    for name in args[::2]:  # An option may stand once.
        if name in given:
            place = given.index(name)
            del given[place : place + 2]
    code, _, err = shoal("compress", world / "model", "--out", "out", *given, *args)
    one_line(code, err, said)


@pytest.mark.parametrize(
    ("config", "said"), [({"num_hidden_layers": "six"}, "num_hidden_layers"), ({"vocab_size": 20}, "token")], ids=str
)
def test_a_config_that_does_not_fit_is_one_clear_line(config, said, world, shoal, tmp_path):
    folder = copied(world, tmp_path, **config)
    if "vocab_size" in config:
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    one_line(*shoal("scan", folder, "--out", "out", *options(world))[::2], said)


def test_a_plan_edited_wrongly_is_one_clear_line(world, shoal, tmp_path):
    assert shoal("plan", world / "model", "--out", "run", "--select", "deepest", "--guard", 1, "--repair", "none")[0] == 0
    content = json.loads((tmp_path / "run" / "plan.json").read_text())
    content["edits"] = [{"edit": "drop", "indices": [-1]}]
    (tmp_path / "run" / "plan.json").write_text(json.dumps(content))
    code, _, err = shoal("apply", tmp_path / "run" / "plan.json", "--out", "new")
    one_line(code, err, "plan.json: the top level: layer -1 is not in 0..5")
    assert err.endswith("0..5\n")


def test_apply_says_the_size_it_found_not_the_one_a_hand_left_in_the_plan(world, shoal, tmp_path):
    assert shoal("plan", world / "model", "--out", "run", "--recipe", "uidl-simple", "--drop", 1)[0] == 0
    content = json.loads((tmp_path / "run" / "plan.json").read_text())
    content["edits"] = [{"edit": "drop", "indices": [1, 2, 4]}]
    (tmp_path / "run" / "plan.json").write_text(json.dumps(content))
    code, out, err = shoal("apply", "run/plan.json", "--out", "new", "--json")
    assert code == 0 and json.loads(out)["layers"] == 3 and "6 -> 3 layers" in err


@pytest.mark.parametrize("content", ["recipe: [default]", "text: &a {sources: *a}"])
def test_a_twisted_recipe_is_one_clear_line(content, shoal, tmp_path):
    (tmp_path / "twisted.yaml").write_text(content)
    one_line(*shoal("run", "twisted.yaml", "--out", "out")[::2], "twisted.yaml")


def test_the_bare_command_prints_its_help(shoal):
    code, _, err = shoal()
    assert code == 2 and err.startswith("Usage: shoal ") and "\n  compress " in err


def test_foreign_and_unusable_folders_are_refused(world, shoal, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("x")
    code, _, err = shoal("compress", world / "model", "--out", "thesis", *options(world), "--overwrite")
    one_line(code, err, "not written by shoal")
    code, _, err = shoal("compress", world / "model", "--out", "thesis/chapter.txt/run", *options(world))
    one_line(code, err, "--out thesis/chapter.txt/run is, or is below")
    code, _, err = shoal("apply", "nowhere.json", "--out", "out")
    one_line(code, err, "nowhere.json")
    code, _, err = shoal("compres", world / "model")
    one_line(code, err, "compres")
    code, _, err = shoal("compress")
    one_line(code, err, "MODEL")


def test_a_full_disk_is_one_clear_line(world, shoal, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = shoal("scan", world / "model", "--out", "out", *options(world))
    one_line(code, err, "disk is full")


def test_a_fault_of_ours_is_not_blamed_on_the_user(world, shoal, monkeypatch):
    monkeypatch.setattr("shoal.measure.scan.Scan.save", lambda self, folder: 1 / 0)
    code, _, err = shoal("scan", world / "model", "--out", "out", *options(world))
    assert code == 1 and "Traceback" in err and "fault of shoal" in err


def test_the_verbs_in_a_row(world, shoal, tmp_path):
    """scan, plan, apply, eval: the long way round, JSON all along."""
    code, out, err = shoal("scan", world / "model", "--out", "run", *options(world, "--json"))
    assert code == 0 and json.loads(out)["provenance"]["n_samples"] == 8 and "Most redundant" in err
    code, out, err = shoal("plan", "run", "--drop", "2", "--replace", "none", *options(world, "--json"))
    assert code == 0 and "Candidates, as plain cuts" in err
    assert Plan.from_json(out) == Plan.load(tmp_path / "run" / "plan.json")
    code, out, _ = shoal("apply", "run/plan.json", "--out", "cut", "--json")
    assert code == 0 and json.loads(out)["layers"] == 4
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "cut").config.num_hidden_layers == 4
    code, out, _ = shoal("eval", "cut", "--teacher", world / "model", *options(world, "--json"))
    quality = json.loads(out)["quality"]
    assert code == 0 and quality["kl"] > 0
    code, out, _ = shoal("eval", world / "model", "--teacher", world / "model", *options(world, "--json"))
    quality = json.loads(out)["quality"]
    assert code == 0 and quality["kl"] == 0 and quality["agreement"] == 1
    code, out, err = shoal("eval", "cut", *options(world, "--json"))
    alone = json.loads(out)
    assert code == 0 and alone["provenance"]["data_hash"] and "perplexity" in err
    assert alone["model"]["perplexity"]["value"] > 1 and alone["model"]["cost"]["layers"] == 4


def test_apply_reloads_where_the_system_does_not_say_how_much_memory_is_free(world, shoal, monkeypatch):
    code, _, err = shoal("plan", world / "model", "--out", "plan", "--recipe", "uidl-simple", "--drop", "1")
    assert code == 0, err
    monkeypatch.setattr(os, "sysconf_names", {})
    code, out, err = shoal("apply", "plan/plan.json", "--out", "cut", "--json")
    assert code == 0, err
    assert json.loads(out)["verification"]["n_tokens"] == 16


def test_run_takes_a_recipe_file(world, shoal, tmp_path):
    text = {"sources": [str(world / "text.jsonl")], "samples": 8, "length": 16}
    (tmp_path / "mine.yaml").write_text(
        json.dumps({"recipe": "uidl", "model": str(world / "model"), "drop": 1, "heal": None, "text": text})
    )
    code, out, err = shoal("run", "mine.yaml", "--out", "run", "--json")
    assert code == 0, err
    assert json.loads(out)["plan"]["after"]["layers"] == 5


def test_help_names_every_entry_of_the_tables(shoal):
    _, out, _ = shoal("compress", "--help")
    said = " ".join(out.split()).replace("- ", "-")  # Lines are broken behind hyphens, too.
    missing = [name for name in (*RECIPES, *SELECTORS, *REPLACEMENTS, *DTYPES) if name not in said]
    missing += [f"mix:{name}" for name in PRESETS if f"mix:{name}" not in said]
    assert not missing


def test_help_and_version_work(shoal):
    for args in (["--help"], ["compress", "--help"], ["--version"], ["scan", "-h"]):
        code, out, _ = shoal(*args)
        assert code == 0 and out


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupt_says_how_to_go_on(number, world, tmp_path):
    command = [sys.executable, "-c", "from shoal.cli import main; main()", "compress", str(world / "model")]
    command += [
        str(arg)
        for arg in (
            "--out",
            tmp_path / "run",
            "--text",
            world / "text.jsonl",
            "--length",
            16,
            "--replace",
            "layer",
            "--train-tokens",
            7000,
        )
    ]
    # A suite that a shell runs in the background ignores Ctrl-C, and so would what it starts.
    heeds = functools.partial(signal.signal, number, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=heeds)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "scan.json").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "run the same command again" in err and "Traceback" not in err


@pytest.mark.parametrize("verb, goes_on", [("compress", True), ("eval", False), ("cut", False)])
def test_a_verb_that_keeps_nothing_does_not_promise_to_go_on(verb, goes_on, monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("shoal.cli._run", interrupted)
    monkeypatch.setattr(sys, "argv", ["shoal", verb])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130 and ("to go on" in capsys.readouterr().err) == goes_on


def test_an_interrupt_while_a_destructor_runs_is_not_lost():
    """Python drops what is raised in a destructor, and the run would go on to its end; a wait ends at once."""
    program = """
import os, signal, time
import shoal.cli
class Late:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
def run():
    Late()
    time.sleep(50)
    return 0
shoal.cli._run = run
shoal.cli.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=45)
    assert done.returncode == 130 and "interrupted" in done.stderr and "Traceback" not in done.stderr, done


def test_the_model_is_left_as_it_was(world, shoal):
    before = {path.name: path.read_bytes() for path in (world / "model").iterdir()}
    code, _, err = shoal(
        "compress", world / "model", "--out", "run", "--drop", "2", *options(world), "--replace", "layer", "--train-tokens", 600
    )
    assert code == 0, err
    assert before == {path.name: path.read_bytes() for path in (world / "model").iterdir()}


def test_a_rule_without_measurements_cuts_a_quantised_checkpoint_file_to_file(world, shoal, tmp_path):
    folder = copied(world, tmp_path, quantization_config={"quant_method": "gptq", "bits": 4, "modules_to_not_convert": []})
    edit_weights(folder, lambda values: values.update({n: v.to(torch.int8) for n, v in values.items() if "mlp" in n}))
    code, _, err = shoal("compress", folder, "--out", "run", *options(world))
    one_line(code, err, "quantised")
    code, _, err = shoal("plan", folder, "--recipe", "uidl-simple", "--drop", "2", "--out", "plan")
    assert code == 0, err
    code, out, err = shoal("apply", "plan/plan.json", "--out", "cut", "--json")
    assert code == 0, err
    assert "quantised" in json.loads(out)["verification"]["reload"]
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "cut" / "model.safetensors")
    assert Plan.load(tmp_path / "plan" / "plan.json").removed_layers == (3, 4)
    for name, value in after.items():
        source = name.replace("layers.3.", "layers.5.")
        assert value.dtype == before[source].dtype and torch.equal(value, before[source]), name


def test_cka_is_measured_when_asked_for(world, shoal, tmp_path):
    code, _, err = shoal("scan", world / "model", "--out", "run", "--observe", "cka", *options(world))
    assert code == 0, err
    tables = json.loads((tmp_path / "run" / "scan.json").read_text())["tables"]
    assert any("cka" in table["criterion"] for table in tables)


@pytest.mark.parametrize(
    "args",
    [("--by", "cosin/rest"), ("--drop", "99%"), ("--protect", "17"), ("--drop", "many"), ("--by", "cka/rest", "--rounds", 2)],
    ids=str,
)
def test_what_cannot_be_is_refused_before_the_scan(args, world, shoal, tmp_path):
    code, _, err = shoal("compress", world / "model", "--out", "out", *options(world), *args)
    one_line(code, err, "")
    assert not (tmp_path / "out" / "scan.json").exists()


@pytest.mark.parametrize("verb", ["compress", "scan", "plan"])
def test_a_run_folder_inside_the_model_is_refused(verb, world, shoal, tmp_path):
    folder = copied(world, tmp_path)
    code, _, err = shoal(verb, folder, "--out", folder / "out", *options(world))
    one_line(code, err, "inside the model")
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EROFS, "Read-only file system", "/mnt/run"), "/mnt/run"),
        (PermissionError(errno.EACCES, "Permission denied", "/mnt/run"), "/mnt/run"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has"), "--resident 1"),
        (RuntimeError("CUDA error: out of memory\nsearch for"), "--resident 1"),
        (RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling"), "--resident 1"),
    ],
    ids=lambda one: str(one)[:30],
)
def test_what_the_machine_has_not_is_one_line(error, said, shoal, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("shoal.run.begin.open_folder", fail)
    code, _, err = shoal("scan", "model", "--out", "run")
    one_line(code, err, said)
