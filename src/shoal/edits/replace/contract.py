"""What a replacement promises: a frozen description that builds a module for a span and says what it costs.

Light: the table of replacements is read by the command's help and by recipes, so torch is imported only to build.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

if TYPE_CHECKING:
    from torch import nn

    from shoal.edits.replace.closed_form import ClosedForm
    from shoal.engine.view import DecoderView
    from shoal.words.model_shape import ModelShape
    from shoal.words.structure import Size
    from shoal.words.types import Span

MOST_WIDTH = 1_000_000
"""Hidden units or rank that a replacement may be asked for; no model is as wide."""

Layout = Literal["stock", "code"]
"""How a checkpoint holds a replacement: as a layer of the family, or by code that comes with the checkpoint."""

StartsAs = Literal["inherits", "zero", "random"]
"""A copy of the span's first layers; the identity; or numbers that mean nothing yet."""


class Replacement(Protocol):
    """Description of a module that runs in place of a span. Its fields are the options; None means: as the family has it.

    Attributes:
        name: its entry in ``REPLACEMENTS``, and in a plan. ``about``: one line for people.
        layouts: ways a checkpoint can hold it, preferred first; ``stock`` only in families whose layers have its form.
        starts_as: what the untrained module is.
        n_inherited: layers it starts as a copy of; removing the rest of the span is its step 0.
        n_layers: layers it counts as in the checkpoint.
        has_closed_form: the values of its modules follow from sums; :meth:`closed_form` says how.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    layouts: ClassVar[tuple[Layout, ...]]
    has_closed_form: ClassVar[bool]

    @property
    def starts_as(self) -> StartsAs: ...

    @property
    def n_inherited(self) -> int: ...

    @property
    def n_layers(self) -> int: ...

    def options(self) -> dict[str, Any]:
        """Its fields that are set, as a plan holds them."""
        ...

    def resolved(self, view: DecoderView) -> Self:
        """With every option set, None replaced by what the model's family has.

        Raises:
            ValueError: an option that this model cannot have.
        """
        ...

    @classmethod
    def closed_form(cls, module: nn.Module) -> ClosedForm | None:
        """How the values of one of its modules follow from sums; None where they do not."""
        ...

    def n_own_parameters(self, hidden_size: int) -> int:
        """Parameters beyond those of ``n_layers`` layers of the family; of a resolved description."""
        ...

    def most_parameters(self, shape: ModelShape) -> int:
        """Parameters of its module at most, from sizes alone: what is trained, for the memory plan."""
        ...

    def build(self, view: DecoderView, span: Span) -> nn.Module:
        """The untrained module, with parameters of its own, in the model's dtype and on its device.

        It is called ``module(h_BTD, *args, **kwargs)`` with the recorded arguments of layer ``args_from(span)`` and returns
        what the family's layers return, or the stream alone. Of an ``nn.ModuleList`` member i is called with the arguments of
        layer ``args_from(span) + i``, one after the other. Building twice gives equal bits.
        """
        ...

    def args_from(self, span: Span) -> int:
        """The (first) layer whose masks and rotary embeddings the module runs under."""
        ...

    def size(self, view: DecoderView, span: Span) -> Size:
        """Layers and parameters the checkpoint gains; a plan's budget is net of them."""
        ...
