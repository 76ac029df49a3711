"""The table of edits: a plan holds these kinds and no others. A new kind is a file and a line here."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from shoal.edits.base import BaseEdit
from shoal.edits.drop import Drop
from shoal.edits.insert import Insert
from shoal.edits.merge_edit import Merge
from shoal.edits.prune import Prune
from shoal.edits.refit import Refit
from shoal.edits.replace.replace_edit import Replace
from shoal.words.records import nearest

EDITS: dict[str, type[BaseEdit]] = {
    kind.model_fields["edit"].default: kind for kind in (Drop, Replace, Merge, Insert, Refit, Prune)
}


def edit_of(content: Any) -> BaseEdit:
    """An edit from the fields of a plan's file, of the kind that ``edit`` names; an edit is returned as it is.

    Raises:
        ValueError: no fields, or a kind that the table does not hold; pydantic's own for wrong fields of a kind.
    """
    if isinstance(content, BaseEdit):
        return content
    name = content.get("edit") if isinstance(content, dict) else None
    if not isinstance(name, str) or name not in EDITS:
        raise ValueError(f"edit {str(name)[:60]!r} is no kind of edit; {nearest(str(name)[:60], EDITS)}")
    return EDITS[name].model_validate(content)


Edit = Annotated[SerializeAsAny[BaseEdit], BeforeValidator(edit_of)]
