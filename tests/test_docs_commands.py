"""Every command in README and docs is one that the parser knows: no verb and no option is left over from yesterday."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from shoal.cli.table import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "log.md")]
COMMANDS = typer.main.get_command(app).commands


def commands_in(page):
    """Commands of code blocks, and those between backticks in the text, as words."""
    text = page.read_text().replace("\\\n", " ")
    blocks = re.findall(r"```(?:bash|sh|console)?\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    for line in lines:
        found = re.match(r"(?:\$ )?(?:torchrun [^|;]*-m )?(shoal .*)", line.strip())
        if found:
            yield shlex.split(found[1].split(" | ")[0].split(" > ")[0], comments=True)


def problem(words):
    """What the parser would say of verb and options, or None."""
    verb = words[1].strip(".,;:")
    if verb.startswith("-") or not re.fullmatch(r"[a-z]+", verb):
        return None  # These are options of the command itself, or a placeholder for verbs.
    if verb not in COMMANDS:
        return f"no verb {verb}"
    known = {option for one in COMMANDS[verb].params for option in one.opts} | {"--help", "-h"}
    unknown = [word for word in (part.split("=")[0].strip(".,;:|[]") for part in words[2:]) if word.startswith("--")]
    unknown = [word for word in unknown if word not in known]
    return f"{verb} has no {', '.join(unknown)}" if unknown else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_one_that_there_is(page):
    wrong = [(" ".join(words), said) for words in commands_in(page) if len(words) > 1 and (said := problem(words))]
    assert wrong == []


def test_the_documents_are_read_and_a_wrong_command_is_seen():
    assert sum(len(list(commands_in(page))) for page in PAGES) > 60
    assert problem(["shoal", "sweep", "MODEL"]) == "no verb sweep"
    assert problem(["shoal", "scan", "MODEL", "--frobnicate", "3"]) == "scan has no --frobnicate"


def test_the_walk_can_be_parsed_to_the_last_option(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text('{"text": "a b c"}\n')  # Texts are looked for where the line is parsed.
    walk = [words for words in commands_in(ROOT / "docs" / "steps.md") if not any(word.endswith("...") for word in words)]
    assert [words[1] for words in walk[:5]] == ["scan", "plan", "apply", "eval", "compress"]
    for _, verb, *words in walk[:5]:
        COMMANDS[verb].make_context(verb, words)
