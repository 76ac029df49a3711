"""Help screens: what most people need comes first, everything else under headings; nothing is cut off at 80 columns.

A verb's first screen holds its arguments and at most :data:`FIRST_SCREEN` options: those that state no heading
(``rich_help_panel``) where they are declared. The command's first screen holds six verbs.
"""

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from shoal.recipes.listing import recipes_said

FIRST_SCREEN = 12
"""Most options of a verb without a heading, ``--help`` among them."""

METHOD = "Recipe"
TEXT = "Text"
REMOVED = "What is removed"
REPAIRED = "How the cut is repaired"
ZEROS = "Weights set to zero"
HEALED = "Healing"
TRAINED = "What is trained"
ADAPTERS = "Adapters"
TOWARDS = "What it is trained towards"
STEPS = "Steps of the training"
TASKS = "Tasks"
MACHINE = "Machine and precision"


class VerbHelp(TyperCommand):
    """The help of one verb."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, the options of the first screen, then each heading in the order of its first option."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                # The name of an argument is shown without its type, which is a word of programmers.
                name = record[0].split(" <")[0]
                sections.setdefault(heading_of(parameter), []).append((name, record[1]))
        if self.name == "run":
            sections["Recipes"] = recipes_said()
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def heading_of(parameter: Any) -> str:
    """The heading under which a parameter stands."""
    if parameter.param_type_name == "argument":
        return "Arguments"
    return getattr(parameter, "rich_help_panel", None) or "Options"


class VerbList(TyperGroup):
    """The help of the command: two lists of verbs, each with its whole first sentence."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The verbs of each heading, in the order in which the table states them."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            verb = self.get_command(ctx, name)
            heading = getattr(verb, "rich_help_panel", None) or "Verbs"
            sections.setdefault(heading, []).append((name, first_sentence((verb and verb.help) or "")))
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence."""
    line = " ".join(text.split("\n\n")[0].split())
    return line.split(". ")[0].removesuffix(".") + "."


def parser(*, first: dict[str, Any], others: dict[str, Any], callback: Any) -> typer.Typer:
    """The parser of the command: verbs by name, those of the first heading before the others."""
    app = typer.Typer(
        name="shoal",
        cls=VerbList,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        callback=callback,
        epilog="Each verb has its own help: shoal compress --help. A first try, offline, in one to two minutes: shoal demo.",
    )
    for heading, verbs in (("Most needed", first), ("More verbs", others)):
        for name, function in verbs.items():
            app.command(name, cls=VerbHelp, rich_help_panel=heading)(function)
    return app
