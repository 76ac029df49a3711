"""A student grafted onto its teacher's GGUF file: new values where it has some, the file's own bytes everywhere else.

Metadata, tokenizer and untouched tensors come from the file, so any architecture that can be cut can be grafted, and what was
quantised is not quantised again. How a tensor is laid out in the file (rows interleaved, one added, transposed) is not assumed
but found: the layout that brings the student's values nearest to what the file holds. One that is not clearly the nearest is
refused.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shoal.engine.gguf_head import Place
from shoal.export.gguf.blocks import decoded, encoded, fitting_kind, kind_number, n_bytes_of
from shoal.export.gguf.convert import interleaved
from shoal.export.gguf.cut_file import BLOCK, refuse_same_file, renumbered, with_provenance
from shoal.export.gguf.file_parts import GgufModel, Stored
from shoal.export.gguf.layers import cut_keys
from shoal.export.gguf.stored_weights import StoredWeights
from shoal.export.gguf.write_file import Outgoing, write_gguf
from shoal.words.progress import each

Array = np.ndarray[Any, Any]
NEAR = 0.6  # New values differ from those of the file by at most this, relatively; another order of rows gives about 1.4.
CLEARLY = 2.0  # The next layout must be so many times farther off.
NUMBER = re.compile(r"\.(\d+)\.")
DECODER = re.compile(r"language_model\.")
"""What stands in the names of a decoder that is wrapped for images, and not in those of a text model."""
BESIDE = re.compile(r"(model\.)?(vision_tower|vision_model|visual|multi_modal_projector)\.")
"""Names of what turns images into embeddings: no cut changes it, and llama.cpp reads it from a file of its own (mmproj)."""

DERIVED = re.compile(r"(blk\.\d+\.)?(rope_freqs|rope_factors_long|rope_factors_short|attn_rot_embd)\.")
"""Names in the file of what follows from the config and is no tensor of a checkpoint."""


@dataclass(frozen=True)
class Grafted:
    """What came from where.

    Attributes:
        n_new, n_kept: tensors with the student's values, and with the bytes of the file.
        layouts: role of a tensor to the layout that was found for it.
        left: the share of what sets a new matrix apart from the file's that is there still when it is written in blocks, of the
            middle one of them: 0 says that its values went back to the steps of the file. 1.0 without new matrices.
    """

    n_new: int
    n_kept: int
    layouts: dict[str, str]
    left: float


@dataclass(frozen=True)
class Source:
    """The checkpoint a student was cut from, to tell new values from old ones."""

    weights: StoredWeights
    layers: Sequence[int]


def graft(
    model: GgufModel,
    weights: StoredWeights,
    order: Sequence[int],
    out: Path,
    *,
    source: Source | None = None,
    kind: str = "q8_0",
    overwrite: bool = False,
) -> Grafted:
    """Write the student as one file.

    Args:
        model: the teacher's file.
        weights: of the student's checkpoint.
        order: the teacher's layer of each layer of the student.
        source: tensors that equal those of the checkpoint they were cut from keep the file's bytes. None: tensors that equal
            what the file unpacks to, in the student's precision, do.
        kind: block format of new matrices; vectors are fp32.
    Raises:
        ValueError: the file cannot be cut so; a tensor of the student has no place in it, another shape, or no clear layout.
    """
    architecture, n_layers = model.architecture, model.n_layers
    refuse_same_file(out, model.files)
    keys = cut_keys(model.keys, architecture, n_layers, order)
    stored = renumbered(model, n_layers, order)
    names = _names(weights, architecture, len(order), {name for name, _ in stored})
    changed = _Changed(weights, source, _layouts(model))
    old: set[str] = set()
    for name, one in each("look for new tensors", stored):
        if name not in names or changed.is_old(names[name], one):
            old.add(name)
    for name, one in each("learn the layout of the file", stored):
        if name in old and name in names and BLOCK.match(name):
            changed.compare(name, names[name], one)
    found = [
        Outgoing(name, one.place.shape, one.place.kind, one.place.n_bytes, one.chunks)
        if name in old
        else changed.outgoing(name, names[name], one, kind)
        for name, one in stored
    ]
    new = with_provenance(keys, order, n_parameters=sum(one.place.n_values for _, one in stored), architecture=architecture)
    write_gguf(out, new, found, version=model.version, overwrite=overwrite)
    return Grafted(changed.n_new, len(found) - changed.n_new, changed.layouts, changed.left)


def _names(weights: StoredWeights, architecture: str, n_layers: int, known: set[str]) -> dict[str, str]:
    """Name in the file to name in the student's checkpoint.

    Raises:
        ValueError: a tensor of the student that the file has no place for, or one of the file that the student does not have.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    number = next((known for known, name in MODEL_ARCH_NAMES.items() if name == architecture), None)
    if number is None:
        raise ValueError(f"the installed gguf package has no names for {architecture!r}; pip install -U gguf")
    names = get_tensor_name_map(number, n_layers)
    found: dict[str, str] = {}
    for name in weights.names:
        if BESIDE.match(name):
            continue
        given = names.get_name(DECODER.sub("", name), try_suffixes=(".weight", ".bias"))
        if given == "output.weight" and given not in known:
            continue  # The head is tied to the embeddings.
        if given is None or given not in known:
            raise ValueError(
                f"the student's tensor {name!r} has no place in the teacher's file; it is of another kind of model"
            )
        found[given] = name
    if "output.weight" in known and "token_embd.weight" in found:  # A tied head, which the file states once more.
        found.setdefault("output.weight", found["token_embd.weight"])
    foreign = next((name for name in sorted(known - found.keys()) if not DERIVED.match(name)), None)
    if foreign is not None:
        raise ValueError(
            f"{foreign!r} of the file is no tensor of the student, so nothing says whether its values still hold; use "
            "python convert_hf_to_gguf.py FOLDER of a llama.cpp checkout"
        )
    return found


class _Changed:
    """Which tensors are new, and their bytes in the layout of the file."""

    def __init__(self, weights: StoredWeights, source: Source | None, layouts: Mapping[str, Callable[[Array], Array]]) -> None:
        self._weights, self._source, self._known = weights, source, layouts
        self.layouts: dict[str, str] = {}
        self.n_new = 0
        self._left: list[float] = []

    @property
    def left(self) -> float:
        return float(np.median(self._left)) if self._left else 1.0

    def is_old(self, name: str, stored: Stored) -> bool:
        """Whether the student's tensor is what the teacher has there."""
        if self._source is not None:
            before = NUMBER.sub(lambda m: f".{self._layer(int(m[1]))}.", name, count=1)
            return before in self._source.weights and self._weights.is_same(name, self._source.weights, before)
        values, theirs = self._weights.values(name), _values_of(stored)
        return any(
            made.shape == theirs.shape and np.array_equal(made, self._rounded(name, theirs))
            for made in (layout(values) for layout in self._fitting(values, theirs).values())
        )

    def _layer(self, layer: int) -> int:
        assert self._source is not None
        return self._source.layers[layer] if layer < len(self._source.layers) else layer

    def _rounded(self, name: str, values: Array) -> Array:
        """Values in the precision of the student's checkpoint, as fp32."""
        return self._weights.rounded(name, values)

    def _fitting(self, values: Array, theirs: Array) -> dict[str, Callable[[Array], Array]]:
        found = {}
        for name, layout in self._known.items():
            try:
                made = layout(values)
            except ValueError:  # These rows are no whole heads.
                continue
            if made.shape == theirs.shape:
                found[name] = layout
        return found

    def compare(self, name: str, theirs: str, stored: Stored) -> None:
        """Find the layout of a kind of tensor by one that is old. Raises ValueError where the file holds something else."""
        block = BLOCK.match(name)
        if block is not None and block[2] not in self.layouts:
            self._layout(name, self._weights.values(theirs), _values_of(stored))

    def outgoing(self, name: str, theirs: str, stored: Stored, kind: str) -> Outgoing:
        """A tensor with the student's values; the layout is found now, the bytes are made when their turn comes."""
        values, old = self._weights.values(theirs), _values_of(stored)
        layout = self._layout(name, values, old)
        self.n_new += 1
        shape = layout(values).shape
        as_kind = fitting_kind(kind, shape)
        place = Place(name, tuple(reversed(shape)), kind_number(as_kind), 0, n_bytes_of(as_kind, shape))

        def made() -> list[bytes]:
            new = layout(self._weights.values(theirs))  # It is read again, so that the values of all are never held.
            raw = encoded(new, as_kind)
            if len(shape) > 1:
                self._left.append(share_left(_values_of(stored), new, decoded(raw, place)))
            return [raw]

        return Outgoing(name, place.shape, place.kind, place.n_bytes, made)

    def _layout(self, name: str, values: Array, old: Array) -> Callable[[Array], Array]:
        block = BLOCK.match(name)
        role = block[2] if block else name
        fitting = self._fitting(values, old)
        if not fitting:
            raise ValueError(f"{name!r} has shape {old.shape} in the file and {values.shape} in the student; they do not fit")
        if not values.any():  # The sublayer was removed, and zeros are zeros in every order.
            plain = next((n for n in fitting if not n.startswith("one added")), None)
            return fitting[plain] if plain else next(iter(fitting.values()))
        norm = float(np.linalg.norm(old)) or 1.0
        by_distance = sorted((float(np.linalg.norm(layout(values) - old)) / norm, n) for n, layout in fitting.items())
        nearest, found = by_distance[0]
        made = fitting[found](values)
        others = [(d, n) for d, n in by_distance[1:] if not np.array_equal(fitting[n](values), made)]
        earlier = self.layouts.get(role)
        if nearest > NEAR or any(distance < CLEARLY * nearest for distance, _ in others):
            if earlier in fitting:
                return fitting[earlier]
            raise ValueError(
                f"{name!r} of the file is not what the student's teacher has there, in any layout (nearest: {found}, "
                f"{nearest:.2f} away); give the GGUF file of the model it was cut from"
            )
        if earlier is None:
            self.layouts[role] = found
        return fitting[found]


def share_left(old: Array, new: Array, written: Array) -> float:
    """How much of the step from ``old`` to ``new`` is made by ``written``: its projection on that step, as a share of it."""
    wanted, made = (new - old).ravel(), (written - old).ravel()
    length = np.einsum("i,i->", wanted, wanted, dtype=np.float64)
    return float(np.einsum("i,i->", wanted, made, dtype=np.float64) / length) if length else 1.0


def _values_of(stored: Stored) -> Array:
    return decoded(b"".join(stored.chunks()), stored.place)


def _layouts(model: GgufModel) -> dict[str, Callable[[Array], Array]]:
    """The layouts that converters use, most usual first."""
    found: dict[str, Callable[[Array], Array]] = {
        "as it is": lambda values: values,
        "transposed": lambda values: values.T,
        "one added": lambda values: values + 1,
        "without the middle dimension": lambda values: values.reshape(values.shape[0], -1),
    }
    for key in ("head_count", "head_count_kv"):
        n = model.keys.get(f"{model.architecture}.attention.{key}")
        counts = [] if n is None else sorted(set(n.value)) if n.is_array else [n.value]
        for heads in (c for c in counts if c):
            found[f"rows interleaved in {heads} heads"] = lambda values, heads=heads: interleaved(values, heads)  # type: ignore[misc]
    return found
