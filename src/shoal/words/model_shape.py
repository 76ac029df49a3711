"""Sizes of a model, as far as one can tell without its weights. Whoever takes memory says how much by these."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model as it will run.

    Attributes:
        hidden, ffn: size of the stream, and inputs of the MLP's map into it that a token meets, of all its experts together.
        vocabulary: tokens.
        itemsize: bytes of an element in the dtype that it will run in.
        layer_parameters: those of the largest layer; ``other_parameters``: those of embedding, final norm and head.
        window: tokens that the model was made for; None: the config does not say.

    Sizes that do not matter to whom it is made for may be left out.
    """

    n_layers: int
    hidden: int
    ffn: int
    itemsize: int = 4
    vocabulary: int = 0
    layer_parameters: int = 0
    other_parameters: int = 0
    window: int | None = None

    @property
    def layer_bytes(self) -> int:
        return self.layer_parameters * self.itemsize

    @property
    def other_bytes(self) -> int:
        return self.other_parameters * self.itemsize
