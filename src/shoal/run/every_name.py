"""Every table of names, with what its entries say of themselves: the page docs/names.md.

``scripts/list_recipes.py`` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoal.edits.inits import INITS
from shoal.edits.merge_rules import RULES
from shoal.edits.replace.table import REPLACEMENTS
from shoal.edits.table import EDITS
from shoal.export.table import EXPORTERS
from shoal.fit.table import REPAIRS
from shoal.measure.metrics import METRICS
from shoal.measure.observers import OBSERVERS
from shoal.measure.unit_scores import OF_VALUES, UNIT_SCORES
from shoal.prune.table import ALLOCATORS, PRUNERS
from shoal.run.stages.table import STAGES
from shoal.select.table import SELECTORS
from shoal.train.heal.merge import MERGES
from shoal.train.heal.presets import PRESETS
from shoal.train.heal.ranks import RANKS
from shoal.train.heal.table import TRAINABLE
from shoal.train.objectives import OBJECTIVES

HEAD = """# Every name

What can be asked for by name, from the tables of the source (`python scripts/list_recipes.py` writes this page). A new entry
is one file and one line in its table, and is then found by recipes, the help of the command, the planner and this page.
[Recipes](recipes.md) have a page of their own.
"""


@dataclass(frozen=True)
class NameTable:
    """A table of entries that each have ``about``, and where their names are written."""

    title: str
    asked: str
    entries: Mapping[str, Any]


TABLES = (
    NameTable("Selectors", "`--select`; `select` in a recipe", SELECTORS),
    NameTable("Metrics", "`--metric`; `search.metric` in a recipe", METRICS),
    NameTable("Observers of a scan", "`--observe`; `observers` in a recipe", OBSERVERS),
    NameTable("Scores of units", "the start of a name behind `--by`: their tables are in [concepts](concepts.md)", UNIT_SCORES),
    NameTable("Scores of units by a metric", "`--by left_out_kl`: the word and a metric", OF_VALUES),
    NameTable("Edits", "`edit` in `plan.json`; selectors and repairs propose them", EDITS),
    NameTable("Starts of new layers", "`shoal grow --init`; `grow.init` in a recipe", INITS),
    NameTable("Rules of merging layers", "`merge.rule` in a recipe", RULES),
    NameTable("Repairs", "`--repair`; `repair` in a recipe", REPAIRS),
    NameTable("Replacements", "`--replace`; `replace` in a recipe", REPLACEMENTS),
    NameTable("Objectives", "`shoal heal --objective`; `train.objective` and `heal.objective` in a recipe", OBJECTIVES),
    NameTable("Pruners", "`--prune`, `shoal prune --method`; `prune.method` in a recipe", PRUNERS),
    NameTable("Rules of allocation", "`shoal prune --allocate`; `prune.allocate` in a recipe", ALLOCATORS),
    NameTable("Methods of healing", "`--heal`, `shoal heal --method`; `heal.method` in a recipe", TRAINABLE),
    NameTable("Ranks of adapters", "`shoal heal --ranks`; `heal.ranks` in a recipe", RANKS),
    NameTable("Ways to merge adapters", "`shoal heal --merge`, or `auto`: the best of them; `heal.merge` in a recipe", MERGES),
    NameTable("Presets of healing", "`shoal heal --preset`", PRESETS),
    NameTable("Export formats", "`shoal export`", EXPORTERS),
    NameTable("Stages", "none is asked for by its name: `run.json` and progress say it, in this order", STAGES),
)


def names_page() -> str:
    """The whole page: a section for each table."""
    return "\n".join([HEAD, *map(_section, TABLES)])


def _section(table: NameTable) -> str:
    rows = [f"| `{name}` | {one.about.replace('|', chr(92) + '|')} |" for name, one in table.entries.items()]
    return "\n".join(
        [f"## {table.title}", "", f"Written as: {table.asked}.", "", "| name | what it is |", "|---|---|", *rows, ""]
    )
