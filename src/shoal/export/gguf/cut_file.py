"""Layers cut out of a GGUF file, file to file: every byte of the kept tensors stays, quantised as it is.

Nothing is opened as a model: no torch, memory of a few megabytes, the speed of the disk. The result says where it is from.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.edits.plan import Plan
from shoal.engine.gguf_head import INT32, STRING, UINT32, Value
from shoal.export.gguf.file_parts import GgufModel, Stored, open_model
from shoal.export.gguf.layers import cut_keys, lists_windows
from shoal.export.gguf.write_file import Outgoing, write_gguf
from shoal.words.structure import describe_removal

BLOCK = re.compile(r"^blk\.(0|[1-9]\d*)\.(.+)$")
KEPT = "shoal.kept_blocks"
BASE = "general.base_model."


@dataclass(frozen=True)
class GgufCut:
    """A file that was written.

    Attributes:
        kept: layers of the source, in order.
        n_parameters: before and after, as they are stored (a tied head once).
        n_bytes: of the files before and the file after.
        notes: what the reader of the file must know.
    """

    path: Path
    architecture: str
    n_layers: int
    kept: tuple[int, ...]
    n_parameters: tuple[int, int]
    n_bytes: tuple[int, int]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        removed = sorted(set(range(self.n_layers)) - set(self.kept))
        return f"{describe_removal(removed, self.n_layers)}; {self.n_bytes[0]:,} -> {self.n_bytes[1]:,} bytes"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "path": str(self.path),
            "architecture": self.architecture,
            "layers": [self.n_layers, len(self.kept)],
            "kept": list(self.kept),
            "parameters": list(self.n_parameters),
            "bytes": list(self.n_bytes),
            "notes": list(self.notes),
        }


def cut_gguf(source: Path, kept: Sequence[int], out: Path, *, overwrite: bool = False) -> GgufCut:
    """Write the layers ``kept`` of a GGUF model, and everything that is no layer, as one file.

    Args:
        source: a file, or the first part of a split model.
        kept: increasing layer numbers of the source.
    Raises:
        ValueError: one line: the file is damaged or cannot be cut this way, no such layer, ``out`` exists or is the source.
        ImportError: the ``gguf`` package is missing.
    """
    model = open_model(source)
    architecture, n_layers = model.architecture, model.n_layers
    order = checked_order(kept, n_layers, where=str(source))
    refuse_same_file(out, model.files)
    keys = cut_keys(model.keys, architecture, n_layers, order)
    tensors = renumbered(model, n_layers, order)
    before, after = (sum(one.place.n_values for one in some) for some in (model.tensors, [one for _, one in tensors]))
    keys = with_provenance(keys, order, n_parameters=after, architecture=architecture)
    outgoing = [
        Outgoing(name, one.place.shape, one.place.kind, one.place.n_bytes, one.chunks) for name, one in tensors
    ]  # fmt: skip
    write_gguf(out, keys, outgoing, version=model.version, overwrite=overwrite)
    notes: tuple[str, ...] = ()
    if lists_windows(keys, architecture):
        notes = ("its sliding windows are listed layer by layer: llama.cpp reads that from build b11434 (October 2026) on",)
    sizes = (sum(file.stat().st_size for file in model.files), Path(out).stat().st_size)
    return GgufCut(Path(out), architecture, n_layers, tuple(order), (before, after), sizes, notes)


def layers_of_plan(plan: Plan, n_layers: int, where: str) -> tuple[int, ...]:
    """The layers that a plan keeps. Raises ValueError for a plan of another depth, or with more in it than whole layers."""
    if plan.n_layers != n_layers:
        raise ValueError(f"the plan was made for {plan.n_layers} layers, {where} has {n_layers}; give the file it was made for")
    if not plan.is_pure_removal:
        raise ValueError(
            "the plan changes values or removes parts of layers, which cutting does not: apply it to the checkpoint, then "
            "shoal export gguf STUDENT --like this file"
        )
    return plan.kept_layers


def checked_order(kept: Sequence[int], n_layers: int, *, where: str) -> list[int]:
    """Raises ValueError unless ``kept`` are increasing layer numbers of a model, at least one."""
    order = list(kept)
    outside = [layer for layer in order if not 0 <= layer < n_layers]
    if outside:
        raise ValueError(f"layer {outside[0]} is not in 0..{n_layers - 1} of {where}")
    if not order:
        raise ValueError(f"no layer of {where} is kept; keep at least one")
    if order != sorted(set(order)):
        raise ValueError(f"the layers to keep must increase, got {order}")
    return order


def refuse_same_file(out: Path, files: Iterable[Path]) -> None:
    """Raises ValueError when the file to be written is one that is read."""
    for file in files:
        if Path(out).exists() and Path(out).samefile(file):
            raise ValueError(f"{out} is the source; originals are never changed, give another name")


def renumbered(model: GgufModel, n_layers: int, order: Sequence[int]) -> list[tuple[str, Stored]]:
    """The tensors that stay under their new names, in the order of the source; those of a repeated layer go to each place.

    Raises:
        ValueError: the blocks of the file are not 0 .. n_layers - 1.
    """
    places: dict[int, list[int]] = {}
    for new, old in enumerate(order):
        places.setdefault(old, []).append(new)
    found: list[tuple[str, Stored]] = []
    seen: set[int] = set()
    for stored in model.tensors:
        block = BLOCK.match(stored.place.name)
        if block is None and stored.place.name.startswith("blk."):
            raise ValueError(f"{model.path}: the tensor {stored.place.name!r} names no block; the file is damaged")
        if block is None:
            found.append((stored.place.name, stored))
            continue
        seen.add(int(block[1]))
        found += [(f"blk.{at}.{block[2]}", stored) for at in places.get(int(block[1]), ())]
    if seen != set(range(n_layers)):
        odd = sorted(seen ^ set(range(n_layers)))[0]
        fault = "has no tensors" if odd < n_layers else "is beyond the last one"
        raise ValueError(f"{model.path}: block {odd} of {n_layers} {fault}; the file is damaged or not of this kind")
    return found


def with_provenance(
    keys: Mapping[str, Value], order: Sequence[int], *, n_parameters: int, architecture: str
) -> dict[str, Value]:
    """Keys that say what the file is: which layers of which model, how large. Engines ignore keys they do not know."""
    new = dict(keys)
    before = new.get(KEPT)
    known = before.value if before is not None and before.is_array and before.element_kind != STRING else None
    kept = [known[layer] for layer in order] if known is not None and len(known) > max(order) else list(order)
    new[KEPT] = Value.of_list(kept, INT32)
    name = new.get("general.name")
    if name is not None and name.kind == STRING:
        new = {key: value for key, value in new.items() if not key.startswith(BASE)}
        new[f"{BASE}count"] = Value.of(1, UINT32)
        for part in ("name", "organization", "version", "repo_url"):
            stated = new.get(f"general.{part}")
            if stated is not None and stated.kind == STRING:
                new[f"{BASE}0.{part}"] = stated
        new["general.name"] = Value.of(f"{name.value}, {len(order)} layers", STRING)
    if "general.size_label" in new:
        if f"{architecture}.expert_count" in new:  # A label of experts times size says nothing of single layers.
            del new["general.size_label"]
        else:
            new["general.size_label"] = Value.of(size_label(n_parameters), STRING)
    return new


def size_label(n: int) -> str:
    """``107M``, ``1.2B``: as the format's converters round it."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if n >= limit:
            return f"{n / limit:.1f}{unit}" if n / limit < 10 else f"{n / limit:.0f}{unit}"
    return f"{n / 1e3:.0f}K"
