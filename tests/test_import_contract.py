"""The import contract: rooms depend one way, heavy packages stay where they belong, the command starts without torch.

Read from the source with ``ast``; lightness is asked of a fresh interpreter.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import shoal
from shoal.cli import early
from shoal.engine.workers import Workers

SRC = Path(shoal.__file__).parent

# A room (a file or a folder of src/shoal) imports only rooms above it in this table, and itself.
ROOMS = """
words       plain data that everybody may read
engine      runs any layer on any states; opens models; the processes of one job
text        documents to samples
measure     numbers per span or unit, and what a student loses
edits       what turns a teacher into a student
select      scores and a budget to a plan
fit         closed forms
prune       weights set to zero
train       gradient training
checkpoint  cutting and saving checkpoints
export      formats of serving engines
evaluate    what was lost
show        tables, charts, card, report
recipes     a choice of all these
run         stages in order
cli         verbs
""".strip().splitlines()
ORDER = [line.split()[0] for line in ROOMS]

# Where transformers may be imported at all: where a model is opened, cut, saved generated from or healed.
TRANSFORMERS = (
    "engine/model_config.py",
    "engine/gguf_source.py",
    "engine/open.py",
    "engine/source.py",
    "engine/streamed.py",
    "engine/wide_products.py",
    "checkpoint/",
    "evaluate/generate.py",
    "export/engines/run_transformers.py",
    "train/heal/",
)

# Only inside the function that needs them: extras, and what makes the command slow to start.
LAZY = {"datasets", "matplotlib", "peft", "lm_eval", "gguf", "torchao", "bitsandbytes", "pyarrow", "accelerate"}

# These reach the command's help or read a recipe or plan, so they may not need torch.
LIGHT = (
    "shoal",
    "shoal.words.types",
    "shoal.edits.plan",
    "shoal.recipes.recipe_file",
    "shoal.fit.table",
    "shoal.prune.prune_config",
    "shoal.measure.metrics",
    "shoal.train.objectives",
    "shoal.train.heal.table",
    "shoal.engine.workers",
    "shoal.cli.malloc",
    "shoal.cli",
    "shoal.cli.table",
)
HEAVY = ("torch", "transformers", "datasets", "matplotlib", "accelerate")

# Tables of interchangeable entries; the file of one entry never imports the file of another.
TABLES = (
    ("measure", "CRITERIA"),
    ("measure", "METRICS"),
    ("edits/replace", "REPLACEMENTS"),
    ("select", "SELECTORS"),
    ("fit", "REPAIRS"),
    ("prune", "PRUNERS"),
    ("prune", "ALLOCATORS"),
    ("train", "OBJECTIVES"),
    ("train/heal", "TRAINABLE"),
    ("engine/packed", "PACKINGS"),
    ("export", "EXPORTERS"),
    ("recipes", "RECIPES"),
)


@dataclass(frozen=True)
class Import:
    """One import statement of ``file`` (relative to src/shoal): the dotted module, and where in the file it stands."""

    file: str
    line: int
    module: str
    in_function: bool
    for_types_only: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def late_name(node: ast.AST) -> tuple[str, str] | None:
    """Module and name of a call ``late("module:name")``."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "late"):
        return None
    where = node.args[0]
    if not isinstance(where, ast.Constant):
        return None
    module, _, name = where.value.partition(":")
    return module, name


def imports_of(path: Path) -> Iterator[Import]:
    def walk(node: ast.AST, in_function: bool, for_types: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            names: list[str] = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: write shoal.… imports in full"
                module = child.module or ""
                names = [f"{module}.{alias.name}" for alias in child.names] if module == "shoal" else [module]
            named = late_name(child)
            for name in names + ([] if named is None else [named[0]]):
                is_later = in_function or named is not None
                yield Import(path.relative_to(SRC).as_posix(), child.lineno, name, is_later, for_types)
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typed = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
            yield from walk(child, in_function or function, for_types or typed)

    return walk(ast.parse(path.read_text(), str(path)), False, False)


@cache
def imports() -> list[Import]:
    """All of the source: read by the first law that asks, not by every process that collects tests."""
    return [one for path in sorted(SRC.rglob("*.py")) for one in imports_of(path)]


def room_of(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def roots(one: Import) -> str:
    return one.module.split(".")[0]


def test_every_file_lives_in_a_room_of_the_table():
    rooms = {room_of(path.relative_to(SRC).as_posix()) for path in SRC.rglob("*.py")} - {"__init__", "__main__"}
    assert rooms <= set(ORDER), f"add {rooms - set(ORDER)} to the table"
    assert {"words", "engine", "measure"} <= rooms, "the source was not found"


@pytest.mark.parametrize("room", ORDER)
def test_a_room_imports_only_rooms_before_it(room):
    allowed = set(ORDER[: ORDER.index(room) + 1]) | {"__version__"}
    wrong = [
        str(one)
        for one in imports()
        if room_of(one.file) == room and roots(one) == "shoal" and one.module.split(".")[1] not in allowed
    ]
    assert not wrong, f"{room} may import {sorted(allowed)}"


def test_transformers_is_imported_only_where_a_model_is_opened_cut_or_saved():
    wrong = [
        str(one)
        for one in imports()
        if roots(one) == "transformers" and not one.for_types_only and not one.file.startswith(TRANSFORMERS)
    ]
    assert not wrong


def test_every_place_allowed_to_import_transformers_does():
    users = {one.file for one in imports() if roots(one) == "transformers"}
    assert [place for place in TRANSFORMERS if not any(file.startswith(place) for file in users)] == []


def test_extras_are_imported_only_inside_functions():
    wrong = [str(one) for one in imports() if roots(one) in LAZY and not one.in_function and not one.for_types_only]
    assert not wrong


def names_in(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def entry_files(room: str, table: str) -> set[str]:
    """Files of the entries of a table: what the file that assigns ``table`` uses in it and imports from its own room."""
    for path in (SRC / room).glob("*.py"):
        tree = ast.parse(path.read_text())
        home = {
            alias.asname or alias.name: f"{node.module.removeprefix('shoal.').replace('.', '/')}.py"
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"shoal.{room.replace('/', '.')}.")
            for alias in node.names
        }
        for node in tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
            if [t.id for t in targets if isinstance(t, ast.Name)] == [table]:
                # The annotation names the type of an entry.
                shared = names_in(node.annotation) if isinstance(node, ast.AnnAssign) else set()
                late = [named[0] for inner in ast.walk(node.value) if (named := late_name(inner)) is not None]
                late_files = {f"{module.removeprefix('shoal.').replace('.', '/')}.py" for module in late}
                return {home[name] for name in names_in(node.value) - shared if name in home} | late_files
    raise AssertionError(f"no file of {room}/ assigns {table}")


@pytest.mark.parametrize("room, table", TABLES)
def test_table_entries_never_import_each_other(room, table):
    files = entry_files(room, table)
    wrong = [
        str(one)
        for one in imports()
        if one.file in files and f"{one.module.removeprefix('shoal.').replace('.', '/')}.py" in files
    ]
    assert not wrong


@pytest.mark.parametrize("module", LIGHT)
def test_importing_stays_light(module):
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & {set(HEAVY)}))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == []


def test_a_wrong_name_or_number_is_refused_before_torch_is_imported(tmp_path):
    """An import of seconds, for a slip that is seen in the line as it was typed."""
    model, out = str(SRC / "assets" / "books-16l"), ("--out", str(tmp_path / "run"))
    there = ("compress", model, *out)
    empty, bad = tmp_path / "empty", tmp_path / "bad.gguf"
    empty.mkdir()
    bad.write_bytes(b"GGUP" * 8)
    wrong = [
        ([*there, "--drop", "200%"], "below 100%"),
        ([*there, "--drop", "2", "--time", "soon"], "such as 10m"),
        ([*there, "--drop", "2", "--text", str(tmp_path / "gone.txt")], "no such text"),
        ([*there, "--drop", "2", "--text", "0.5*a.txt+0*b.txt"], "positive weight"),
        (["plan", model, *out, "--drop", "200%"], "below 100%"),
        ([*there, "--by", "cosin/rest"], "is no score"),
        (["heal", model, *out], "no plan beside it"),
        (["heal", model, *out, "--teacher", model, "--rank", "0"], "greater than or equal to 1"),
        (["curve", model, *out, "--methods", "nothing-of-the-kind"], "--methods has no"),
        (["curve", model, *out, "--keep", "lots"], "such as 95%"),
        (["apply", model, *out, "--layers", "x"], "is no layer"),
        (["eval", model, "--no-speed"], "is not timed"),
        (["compare", model, model, "--length", "0"], "text.length"),
        (["analyse", model, *out, "--samples", "0"], "text.evaluation"),
        *(
            ([verb, str(tmp_path / "gone"), *out], "no such model")
            for verb in ("compress", "scan", "plan", "heal", "grow", "curve")
        ),
        (["compare", model, str(tmp_path / "gone")], "no such model"),
        (["compress", str(empty), *out], "has no config.json"),
        (["eval", str(bad)], "does not start with GGUF"),
        (["eval", str(tmp_path / "gone")], "no such model"),
        (["apply", str(tmp_path / "gone.json"), *out], "no plan at"),
        (["curve", model, *out, "--methods", ""], "names no method"),
        (["report", str(tmp_path / "gone")], "is not a folder"),
        (["stability", str(tmp_path / "gone"), str(tmp_path)], "no folder at"),
    ]
    code = (
        "import sys\nfrom shoal.cli import main\n"
        f"for sys.argv in {[['shoal', *line] for line, _ in wrong]}:\n"
        "    try: main()\n    except SystemExit as end: print(end.code, *({'torch'} & set(sys.modules)))\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["2"] * len(wrong), shown.stderr
    said = [line for line in shown.stderr.splitlines() if line]
    assert len(said) == len(wrong)
    for line, (_, why) in zip(said, wrong, strict=True):
        assert line.startswith("shoal: error: ") and why in line


def test_a_name_that_is_right_only_later_is_not_refused_early(tmp_path, monkeypatch):
    """A run may hold two GGUF files beside its model, and the first process of a job alone reads text."""
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    assert early.named_models(str(tmp_path)) == str(tmp_path)
    gone = [str(tmp_path / "gone.txt")]
    with pytest.raises(ValueError, match="no such text"):
        early.named_texts(gone)
    monkeypatch.setattr(early, "join", lambda: Workers(1, 2), raising=False)
    assert early.named_texts(gone) == gone


@cache
def statements_of(path: Path) -> list[ast.AST]:
    """Every statement of a file, at any depth; expressions, most of its nodes, are not walked."""
    found: list[ast.AST] = [ast.parse(path.read_text())]
    for node in found:
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            found += getattr(node, block, None) or []
    return found


@cache
def names_of(path: Path) -> frozenset[str]:
    """Everything that a module defines, assigns or imports, at any depth."""
    found: set[str] = set()
    for node in statements_of(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                found |= {one.id for one in ast.walk(target) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
    return frozenset(found)


def test_what_benchmarks_scripts_and_tests_import_is_there():
    """They import inside functions, too, where nothing would notice that a name has moved."""
    modules = {path.relative_to(SRC).with_suffix("").as_posix().removesuffix("/__init__"): path for path in SRC.rglob("*.py")}
    root = Path(__file__).parent.parent
    wrong = []
    for path in [path for folder in ("benchmarks", "scripts", "tests") for path in (root / folder).glob("*.py")]:
        for node in statements_of(path):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("shoal."):
                name = (node.module or "").removeprefix("shoal.").replace(".", "/")
                there = names_of(modules[name]) if name in modules else set()
                below = {alias.name for alias in node.names if f"{name}/{alias.name}" in modules}
                missing = {alias.name for alias in node.names} - there - below
                wrong += [f"{path.name}:{node.lineno}: {node.module} has no {one}" for one in sorted(missing)]
    assert wrong == []


def test_what_is_named_to_be_imported_late_is_there():
    """``late`` is given a text, which no checker of names reads."""
    wrong, n_named = [], 0
    for path in SRC.rglob("*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "late(" in text else ():
            if (named := late_name(node)) is not None:
                file = SRC.parent / f"{named[0].replace('.', '/')}.py"
                n_named += 1
                if not file.is_file() or named[1] not in names_of(file):
                    wrong.append(f"{path.name}:{node.lineno}: {named}")
    assert wrong == [] and n_named > 10


# One file per verb, stage and recipe, named after what it runs; a table is what its room is a table of.
NAMED_AFTER_OTHERS = ("cli/", "run/stages/", "recipes/named/")
FILE_NAMES_OF_EVERY_ROOM = {"__init__", "__main__", "table"}


def defined_in(path: Path) -> Iterator[str]:
    """Names of the classes of a file, and of its type aliases: capitalised, and no constants."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name[0].isupper() and not name.isupper() and any(letter.islower() for letter in name):
                yield name


def test_a_class_or_alias_has_one_meaning():
    """No name is defined in two files: a reader who knows it from one place knows it everywhere."""
    places: dict[str, list[str]] = {}
    for path in sorted(SRC.rglob("*.py")):
        for name in set(defined_in(path)):
            places.setdefault(name, []).append(path.relative_to(SRC).as_posix())
    assert len(places) > 200, "the source was not found"
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_a_file_name_stands_in_one_room():
    rooms: dict[str, set[str]] = {}
    for path in SRC.rglob("*.py"):
        file = path.relative_to(SRC).as_posix()
        if path.stem not in FILE_NAMES_OF_EVERY_ROOM and not file.startswith(NAMED_AFTER_OTHERS):
            rooms.setdefault(path.stem, set()).add(room_of(file))
    assert {stem: sorted(found) for stem, found in rooms.items() if len(found) > 1} == {}
