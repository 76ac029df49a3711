"""Option groups: the parser sees each option, the verb sees its groups."""

import ast
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from world import write_model, write_text

import shoal
from shoal.cli.verb import given, verb
from shoal.engine.opening import Opening
from shoal.run.compress import compress

Height = Annotated[int, typer.Option("--height", help="Rows.")]


@dataclass(frozen=True)
class Size:
    height: Height = 3
    width: Annotated[int | None, typer.Option("--width", help="Columns.")] = None


@dataclass(frozen=True)
class Figure:
    size: Size
    colour: Annotated[str, typer.Option("--colour", help="Ink.")] = "black"


seen = []


@verb
def draw(name: Annotated[str, typer.Argument()], figure: Figure, twice: Annotated[bool, typer.Option("--twice")] = False):
    """Draw it."""
    seen.append((name, figure, twice))


def test_the_parser_sees_every_option_of_every_group_in_order():
    flat = inspect.signature(draw).parameters
    assert list(flat) == ["name", "height", "width", "colour", "twice"]
    assert flat["height"].default == 3 and flat["name"].default is inspect.Parameter.empty
    assert draw.__doc__ == "Draw it." and draw.__name__ == "draw"


def test_the_verb_gets_what_was_parsed_as_groups():
    app = typer.Typer()
    app.command()(draw)
    app(["a", "--width", "5", "--colour", "red", "--twice"], standalone_mode=False)
    assert seen.pop() == ("a", Figure(Size(3, 5), "red"), True)


def test_given_is_the_inverse_of_grouping():
    options = {"height": 1, "width": 2, "colour": "red"}
    assert given(Figure(Size(1, 2), "red")) == options
    assert given(Size(1, 2), Size(4, None)) == {"height": 4, "width": None}


def test_two_options_of_one_name_are_a_fault_of_ours():
    with pytest.raises(TypeError, match="height"):

        @verb
        def draw_again(size: Size, height: Height = 2):
            pass


def test_no_function_takes_more_than_ten_parameters():
    """Verbs take groups; anything else with more would be several things at once."""
    source = Path(shoal.__file__).parent
    crowded = []
    for path in sorted(source.rglob("*.py")):
        for one in ast.walk(ast.parse(path.read_text())):
            if isinstance(one, ast.FunctionDef):
                names = [
                    a.arg for a in (*one.args.posonlyargs, *one.args.args, *one.args.kwonlyargs) if a.arg not in ("self", "cls")
                ]
                crowded += [f"{path.relative_to(source)}: {one.name}"] * (len(names) > 10)
    assert crowded == []


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_text(folder / "text.txt")
    write_model(folder / "model")
    return folder


REFUSED = {
    "a score that is none": {"by": "cosin/rest"},
    "a budget that is none": {"drop": "many"},
    "a folder inside the model": {"out": "model/out"},
    "a link out of the model": {"link": True},
    "layers in memory": {"resident": "0"},
}


@pytest.mark.parametrize("why", REFUSED)
def test_library_and_command_refuse_alike(why, world, request, tmp_path):
    """An early refusal stands in one place, so both say the same words, and neither leaves a model folder behind."""
    asked = dict(REFUSED[why])
    model = world / "model"
    if asked.pop("link", False):
        model = write_model(tmp_path / "linked")
        (tmp_path / "far").mkdir()
        (tmp_path / "far" / "notes.txt").write_text("x")
        (model / "notes.txt").symlink_to(tmp_path / "far" / "notes.txt")
    out = world / asked.pop("out") if "out" in asked else tmp_path / "out"
    options = [part for name, value in asked.items() for part in (f"--{name}", value)]
    resident = asked.pop("resident", "auto")
    with pytest.raises(ValueError) as error:
        compress(
            "default",
            out,
            model=str(model),
            text={"sources": [str(world / "text.txt")]},
            opening=Opening(resident=resident),
            **asked,
        )
    code, _, err = request.getfixturevalue("shoal")("compress", model, "--out", out, "--text", world / "text.txt", *options)
    assert code == 2 and " ".join(str(error.value).split()) in err
    assert not (out / "model").exists()
