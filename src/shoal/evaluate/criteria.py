"""Do criteria choose the same layers, and on which text? One record: choices, their overlap, and what each of them costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from shoal.words.records import Provenance, Record
from shoal.words.structure import runs_said

if TYPE_CHECKING:
    from rich.table import Table

CriteriaShape = Literal["span", "lowest"]


class CriterionChoice(Record):
    """What one criterion removes after reading one corpus.

    Attributes:
        criterion: table and tokens (``cosine/rest``), or ``perplexity``: of the cut model itself.
        corpus: index of the text that was read.
        shape: one contiguous ``span``, or the layers of ``lowest`` score, each on its own.
        score: of the choice by its criterion.
        kl, perplexity: of the cut model on every corpus's evaluation text.
    """

    criterion: str
    corpus: int
    shape: CriteriaShape
    layers: tuple[int, ...]
    score: float | None
    kl: tuple[float, ...]
    perplexity: tuple[float, ...]

    @property
    def label(self) -> str:
        return f"{self.criterion} [{self.corpus + 1}]"


class CriteriaComparison(Record):
    """Criteria and corpora at one number of layers.

    Attributes:
        n, n_layers: layers removed, and of the model.
        read, measured: per corpus, the calibration text the criteria read and the evaluation text the costs are measured on.
        teacher_perplexity: per corpus.
    """

    n: int
    n_layers: int
    read: tuple[Provenance, ...]
    measured: tuple[Provenance, ...]
    teacher_perplexity: tuple[float, ...]
    choices: tuple[CriterionChoice, ...]

    def of_shape(self, shape: CriteriaShape) -> tuple[CriterionChoice, ...]:
        return tuple(one for one in self.choices if one.shape == shape)


def jaccard(a: Sequence[int], b: Sequence[int]) -> float:
    """Layers that both remove over layers that either does; 1 for equal choices, 0 for none in common."""
    return len(set(a) & set(b)) / len(set(a) | set(b))


def choices_table(found: CriteriaComparison) -> Table:
    """Every choice with its KL on every corpus."""
    from rich.table import Table

    corpora = "; ".join(f"[{i + 1}] {one.data}" for i, one in enumerate(found.read))
    table = Table(title=f"{found.n} of {found.n_layers} layers, chosen and measured on {corpora}".replace("[", r"\["))
    for column in ("shape", "criterion", "read", "layers out"):
        table.add_column(column)
    for i in range(len(found.measured)):
        table.add_column(rf"KL on \[{i + 1}]", justify="right")
        table.add_column(rf"perplexity on \[{i + 1}]", justify="right")
    for shape in ("span", "lowest"):
        table.add_section()
        for one in found.of_shape(shape):
            pairs = zip(one.kl, one.perplexity, strict=True)
            cells = [cell for kl, perplexity in pairs for cell in (f"{kl:.4g}", f"{perplexity:.4g}")]
            table.add_row(shape, one.criterion, rf"\[{one.corpus + 1}]", runs_said(one.layers), *cells)
    return table


def overlap_table(found: CriteriaComparison, shape: CriteriaShape) -> Table:
    """Jaccard overlap of every two choices of a shape, in percent."""
    from rich.table import Table

    choices = found.of_shape(shape)
    table = Table(title=f"Overlap of {'contiguous spans' if shape == 'span' else 'lowest layers'}, % (Jaccard)")
    table.add_column("")
    for number in range(1, len(choices) + 1):
        table.add_column(str(number), justify="right")
    for number, one in enumerate(choices, start=1):
        cells = [f"{100 * jaccard(one.layers, other.layers):.0f}" for other in choices]
        table.add_row(f"{number}  {one.label}".replace("[", r"\["), *cells)
    return table
