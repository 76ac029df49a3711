"""The table of edits: a plan holds these kinds and no others. A new kind is a file and a line here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from shoal.edits.drop import Drop
from shoal.edits.refit import Refit
from shoal.edits.replace.replace_edit import Replace

Edit = Annotated[Drop | Replace | Refit, Field(discriminator="edit")]
