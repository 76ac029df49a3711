"""What other libraries log and warn of does not reach the people who use the command; errors and Shoal's own words do."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from every_verb import VERBS

SCRIPT = """
import logging, sys, warnings
from shoal.cli import main
for sys.argv in [["shoal", "--version"]]:
    try:
        main()
    except SystemExit as end:
        assert not end.code, sys.argv
import transformers
warnings.warn("a future change", FutureWarning)
warnings.warn("deprecated", DeprecationWarning)
for name in ("torchao", "torch", "transformers", "transformers.modeling_utils", "datasets", "huggingface_hub"):
    logging.getLogger(name).warning("noise of %s", name)
logging.getLogger("torchao").error("an error")
"""


SAID = re.compile(r"\[\d+:\d\d:\d\d\] .+|shoal: .+")  # What Shoal writes into a log begins so.


def run(*flags, script=SCRIPT, **where):
    command = [sys.executable, *flags, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **where)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow  # A process of its own; tests of single libraries below are not.
def test_a_log_holds_what_shoal_says_and_errors_of_libraries(small, tmp_path):
    """A run with a healing, and an export, in a process of their own: no bar, no warning of anybody else is in its log."""
    few = ["--text", small["text"], "--length", "16", "--samples", "8", "--drop", "2", "--guard", "1", "--repair", "none"]
    heal = ["--heal", "lora", "--heal-tokens", "128", "--no-speed", "--out", "run"]
    asked = [["shoal", "compress", small["model"], *few, *heal], ["shoal", "export", "hf", "run", "--out", "written"]]
    *log, last = run(script=SCRIPT.replace('[["shoal", "--version"]]', repr(asked)), cwd=tmp_path).strip().splitlines()
    assert last == "an error" and any("heal" in line for line in log)
    assert [line for line in log if not SAID.fullmatch(line)] == []


EVERY_VERB = """
import shutil, sys
sys.path.insert(0, {tests!r})
from shoal.cli import main

def shoal(*args):
    sys.argv = ["shoal", *map(str, args)]
    try:
        main()
    except SystemExit as end:
        return end.code or 0, "", ""

print("=== prepare", file=sys.stderr)
from pathlib import Path
from every_verb import ON_FILES, VERBS, prepare, write_world
world = write_world(Path("world"), "stock config")
prepare(world, shoal)
for verb, args in VERBS.items():
    asked = args(world)
    print(f"=== {{verb}}", file=sys.stderr, flush=True)
    shutil.rmtree("run", ignore_errors=True)
    code = shoal(*asked, *(() if verb in ON_FILES else ("--trust-remote-code",)))[0]
    assert code == 0, verb
"""


@pytest.mark.slow
def test_the_log_of_every_verb_holds_what_shoal_says(tmp_path):
    """All of them in one process of its own, whose stderr is a file, as a cluster's log is."""
    (tmp_path / "world").mkdir()
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-c", EVERY_VERB.format(tests=str(Path(__file__).parent))]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=log, cwd=tmp_path, timeout=3600, check=False)
    _, *parts = (tmp_path / "log").read_text().split("=== ")
    said = {part.partition("\n")[0]: part.partition("\n")[2].splitlines() for part in parts}
    assert list(said) == ["prepare", *VERBS], said[list(said)[-1]]
    noise = {verb: [line for line in lines if not SAID.fullmatch(line)] for verb, lines in said.items() if verb != "prepare"}
    assert {verb: lines for verb, lines in noise.items() if lines} == {}


def test_signs_that_the_terminal_has_not_are_replaced():
    script = SCRIPT.split("import transformers")[0] + "print('\\u00b1 1'); print('\\ud800', file=sys.stderr)"
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, env=ascii_only)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "? 1" and done.stderr.strip() == "?", done.stderr


@pytest.mark.slow
def test_who_asks_for_warnings_gets_them():
    assert "a future change" in run("-W", "default")
