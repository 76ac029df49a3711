"""What the command says to do next can be done: each command is parsed, and its files are those that are there."""

import shlex
from pathlib import Path

import pytest
import typer

from shoal.cli.show import next_steps
from shoal.cli.table import app
from shoal.edits.drop import Drop
from shoal.edits.plan import Plan
from shoal.words.structure import Size


def plan():
    before, after = Size(layers=6, parameters=60), Size(layers=5, parameters=50)
    return Plan(source="org/a name", source_hash="h", teacher="org/a name", n_layers=6, before=before, after=after,
                edits=(Drop(indices=(3,)),))  # fmt: skip


@pytest.mark.parametrize("is_healed", [False, True])
def test_every_next_step_is_a_command_that_parses(is_healed):
    head, *lines = next_steps(Path("out dir/run"), plan(), is_healed=is_healed)
    commands = [shlex.split(line.split(":", 1)[1]) for line in lines]
    assert head == "What next:" and all(len(line) <= 80 for line in lines)
    assert [words[1] for words in commands] == (["compare", "export"] if is_healed else ["compare", "heal", "export"])
    group = typer.main.get_command(app)
    for _, verb, *words in commands:
        context = group.commands[verb].make_context(verb, words, resilient_parsing=False)
        assert any("out dir/run" in str(value) for value in context.params.values())
