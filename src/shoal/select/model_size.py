"""Parameter counts a budget rests on: all of them, tied ones once, and what leaves with each layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from shoal.edits.drop import Drop
from shoal.edits.plan import structure_of
from shoal.edits.replace.replace_edit import Replace
from shoal.edits.table import Edit
from shoal.words.structure import Size, Structure, stored
from shoal.words.types import Span, Unit, spans_of

if TYPE_CHECKING:
    from torch import nn

    from shoal.edits.replace.contract import Replacement
    from shoal.engine.view import DecoderView


@dataclass(frozen=True)
class ModelSize:
    """Parameters of a model.

    Attributes:
        total: every parameter of every module, tied ones once.
        layers: per layer, the parameters that leave with it (those that nothing else uses).
        sublayers: of those, the parameters of its attention and of its MLP; empty: not known.
    """

    total: int
    layers: tuple[int, ...]
    sublayers: tuple[tuple[int, int], ...] = ()

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    def of(self, unit: Unit) -> int:
        """Parameters that leave with a unit; of a layer its norms, too."""
        if unit.kind == "layer":
            return self.layers[unit.index]
        return self.sublayers[unit.index][0 if unit.kind == "attn" else 1] if self.sublayers else 0

    @property
    def before(self) -> Size:
        return Size(layers=self.n_layers, parameters=self.total)

    def after(self, structure: Structure, own_parameters: int = 0) -> Size:
        """The size of a student. What only a sublayer that is off would read does not count.

        Args:
            own_parameters: of each module that is no layer of the checkpoint.
        """
        layers = stored(structure)
        kept = sum(self.layers[slot.like] for slot in layers)
        kept -= sum(self.of(Unit(kind, slot.like)) for slot in layers for kind in slot.off)
        hosted = own_parameters * (len(structure) - len(layers))
        return Size(layers=len(layers), parameters=self.total - sum(self.layers) + kept + hosted)


@dataclass(frozen=True)
class PutBack:
    """What stands in place of each run of removed layers, as far as sizes go: plain data, so that it is part of a run's key.

    Attributes:
        name, options: of the replacement, as a plan holds them; ``none`` puts nothing back.
        layers: layers it counts as in the checkpoint; they have the sizes of the span's first ones.
        inherits: layers it starts as a copy of, so that its step 0 equals removing the rest of the span.
        own_parameters: what it has beyond its ``layers``.
        scores_inherited: spans are scored over the layers it inherits, too; not where candidates are compared by their repair.
    """

    name: str = "none"
    layers: int = 0
    inherits: int = 0
    own_parameters: int = 0
    scores_inherited: bool = True
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def n_before(self) -> int:
        """Layers that have to stay before a run: those it inherits, or one that its code can be attached to."""
        return 0 if self.name == "none" else max(1, self.inherits)

    def edits(self, removed: Sequence[int]) -> tuple[Edit, ...]:
        """The edits whose untrained student lacks exactly ``removed`` layers; each of their runs gets a module of its own.

        Raises:
            ValueError: as :meth:`replaced`.
        """
        if self.name == "none":
            return (Drop(indices=tuple(removed)),) if removed else ()
        return tuple(
            Replace(start=span.start, stop=span.stop, replacement=self.name, options=dict(self.options))
            for span in self.replaced(removed)
        )

    def replaced(self, removed: Iterable[int]) -> tuple[Span, ...]:
        """The spans a replacement takes over so that its step 0 lacks exactly the ``removed`` layers.

        Raises:
            ValueError: too few layers before a run are kept; says how many are needed.
        """
        if self.name == "none":
            return ()
        spans, stop = [], 0
        for run in spans_of(removed):
            if run.start - stop < self.n_before:
                layers = "the layer" if self.n_before == 1 else f"{self.n_before} layers"
                why = "inherits" if self.inherits else "stands behind"
                stays = run.start - 1 if stop else 0
                raise ValueError(
                    f"replacement {self.name!r} {why} {layers} before the removed ones, so layer {stays} has to stay"
                )
            spans.append(Span(run.start - self.inherits, run.stop))
            stop = run.stop
        return tuple(spans)


NOTHING = PutBack()


def size_without(size: ModelSize, layers: Sequence[int], put_back: PutBack) -> Size:
    """The size without some layers, net of what is put back in place of each of their runs."""
    return size.after(structure_of(put_back.edits(sorted(set(layers))), size.n_layers), put_back.own_parameters)


def put_back_of(replacement: Replacement | None, hidden_size: int) -> PutBack:
    """What a replacement costs; one whose options are resolved, or None for plain removal."""
    if replacement is None:
        return NOTHING
    return PutBack(
        name=replacement.name,
        layers=replacement.n_layers,
        inherits=replacement.n_inherited,
        own_parameters=replacement.n_own_parameters(hidden_size),
        options=tuple(replacement.options().items()),
    )


def model_size(view: DecoderView) -> ModelSize:
    """The parameters of a view's model; those of a quantised one as the numbers that it stands for."""
    return size_of(view.shapes, view.layers_path)


def size_of(model: nn.Module, layers_path: str) -> ModelSize:
    """Count parameters, also on the ``meta`` device. One that a layer shares with anything else leaves with no single layer;
    of a table with a block for every layer the block leaves with its layer."""
    from shoal.engine.families import output_map, sublayer, text_config
    from shoal.engine.per_layer_tables import per_layer_tables

    owners: dict[int, set[str]] = {}
    prefix = layers_path + "."
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = name.removeprefix(prefix).split(".")[0] if name.startswith(prefix) else "outside"
        owners.setdefault(id(parameter), set()).add(owner)
    layers = cast("nn.ModuleList", model.get_submodule(layers_path))
    own = [0] * len(layers)
    for parameter in model.parameters():
        (owner, *others) = owners[id(parameter)]
        if not others and owner != "outside":
            own[int(owner)] += parameter.numel()
    for name in per_layer_tables(model, text_config(model.config)) if hasattr(model, "config") else ():
        own = [count + model.get_parameter(name).numel() // len(own) for count in own]
    sublayers = []
    for layer in layers:
        paths = [found[0] if (found := sublayer(layer, kind)) else output_map(layer, kind) for kind in ("attn", "mlp")]
        inside = [
            sum(p.numel() for name, p in layer.named_parameters() if path and f"{name}.".startswith(f"{path}.")
                and len(owners[id(p)]) == 1)
            for path in paths
        ]  # fmt: skip
        sublayers.append((inside[0], inside[1]))
    return ModelSize(total=sum(p.numel() for p in model.parameters()), layers=tuple(own), sublayers=tuple(sublayers))
