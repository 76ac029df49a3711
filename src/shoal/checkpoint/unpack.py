"""A quantised checkpoint as a plain one: every packed weight out of its blocks, everything else byte for byte.

Goes weight by weight from file to file, by the formula of the method (:mod:`shoal.engine.packed`): no model is opened, no
package of the method is needed, and the memory is that of one shard of the result.
"""

import copy
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from shoal.checkpoint.config_fields import NESTED
from shoal.checkpoint.config_json import CONFIG, write_config
from shoal.checkpoint.copy_shards import write_index
from shoal.checkpoint.new_folder import copy_side_files, new_folder
from shoal.checkpoint.rewrite import QUANTISATION_FILES, set_dtype
from shoal.engine.families import text_config
from shoal.engine.model_config import describe
from shoal.engine.packed.packing import PackedWeight, PackingMethod
from shoal.engine.packed.table import PACKINGS
from shoal.engine.quantised import PLAIN
from shoal.engine.shards import INDEX, SINGLE, Shard
from shoal.engine.source import quantisation
from shoal.words.progress import each
from shoal.words.reading import guarded, read_json

SHARD_BYTES = 2 * 2**30
COUNTS = ("I64", "BOOL")  # Tables of positions and masks have these types; they are no weights.
SECTIONS = ("quantization_config", "compression_config")


def why_not_unpacked(config: Mapping[str, Any]) -> str | None:
    """Why a checkpoint cannot be taken out of its blocks here, or None.

    Args:
        config: content of its config.json.
    """
    method = quantisation(dict(config))
    if method is None:
        return "it is not quantised, so its weights are plain as they are"
    if method not in PACKINGS:
        return (
            f"its blocks ({method}) are not known here, only those of {', '.join(PACKINGS)}; start from the unquantised "
            "checkpoint: the order is cut, repair, heal, quantise"
        )
    why = PACKINGS[method].refuses(section(config))
    return None if why is None else f"{method}: {why}; start from the unquantised checkpoint"


def section(config: Mapping[str, Any]) -> dict[str, Any]:
    """The quantisation section of a config.json, of a wrapper that of its text model; empty where there is none."""
    return config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config") or {}


def unpack(source: Path, out: Path, *, dtype: torch.dtype | None = None, trust_remote_code: bool = False) -> Path:
    """Write the plain checkpoint of a quantised one.

    Args:
        dtype: of the weights that were packed; None: the one the config states, else bfloat16. The others stay as they are.
        trust_remote_code: code that comes with the source may run to say what its layers are.
    Returns: ``out``.
    Raises:
        ValueError: it is not quantised, in a way that is not known here, or damaged; ``out`` is not empty; too little space.
    """
    stated = read_json(source / CONFIG)
    why = why_not_unpacked(stated)
    if why is not None:
        raise ValueError(f"{source} cannot be unpacked: {why}")
    described = describe(source, trust_remote_code=trust_remote_code)
    packing = PACKINGS[str(quantisation(stated))]
    names = [name for shard in described.shards for name in shard.slots]
    packed = packing.stored(names)
    refuse_other_codes(source, described.shards, packing, packed)
    config = copy.deepcopy(described.config)
    asked = text_config(config).dtype or getattr(config, "dtype", None)
    dtype = dtype or (asked if isinstance(asked, torch.dtype) and asked.itemsize > 1 else torch.bfloat16)
    for part in (config, *(getattr(config, name, None) for name in NESTED)):
        for name in SECTIONS:
            if part is not None and hasattr(part, name):
                delattr(part, name)
    set_dtype(config, dtype)
    n_bytes = sum(parameter.numel() for parameter in described.model.parameters()) * dtype.itemsize
    with new_folder(out, n_bytes=n_bytes) as folder, ExitStack() as files:
        opened = {shard.path: files.enter_context(safe_open(shard.path, "pt")) for shard in described.shards}
        places = {name: opened[shard.path] for shard in described.shards for name in shard.slots}
        beside = {part for one in packed.values() for part in one.parts.values()}
        shards = _Shards(folder)
        for name in each("unpack tensors", names):
            if name in packed:
                shards.add(packed[name].name, plain(packed[name], places, section(stated), source).to(dtype))
            elif name not in beside and not name.endswith(packing.unused):
                shards.add(name, places[name].get_tensor(name))
        shards.close()
        write_config(folder / CONFIG, stated, described.config, config)
        copy_side_files(source, folder)
        for file in QUANTISATION_FILES:
            (folder / file).unlink(missing_ok=True)
    return Path(out)


def plain(one: PackedWeight, places: Mapping[str, Any], stated: Mapping[str, Any], source: Path) -> Tensor:
    """A weight out of its blocks, float32.

    Args:
        places: name of a tensor to the open file that holds it.
        stated: the quantisation section of the config.
    Raises:
        ValueError: its parts do not fit each other.
    """
    with guarded(f"{source}: {one.name} cannot be taken out of its blocks"):
        parts = {ending: places[name].get_tensor(name) for ending, name in one.parts.items()}
        return one.form.unpack(parts, stated)


def refuse_other_codes(source: Path, shards: list[Shard], packing: PackingMethod, packed: Mapping[str, PackedWeight]) -> None:
    """Raises ValueError where a checkpoint holds no packed weight, or packed numbers that no form of the method describes."""
    if not packed:
        raise ValueError(
            f"{source} states {packing.method} and holds no weight that is stored so; its config and its weights are not of "
            "one model"
        )
    known = {part for one in packed.values() for part in one.parts.values()}
    for shard in shards:
        for name, slot in shard.slots.items():
            if name not in known and slot.dtype not in (*PLAIN, *COUNTS) and not name.endswith(packing.unused):
                raise ValueError(
                    f"{source}: {name!r} ({slot.dtype}) is stored in a way of {packing.method} that is not known here; start "
                    "from the unquantised checkpoint"
                )


class _Shards:
    """Tensors into files of a bounded size, in the order they come."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, Tensor] = {}
        self._files: list[list[str]] = []
        self._n_bytes = self._n_held = 0

    def add(self, name: str, value: Tensor) -> None:
        n_bytes = value.numel() * value.element_size()
        if self._held and self._n_held + n_bytes > SHARD_BYTES:
            self._write()
        self._held[name] = value.contiguous()
        self._n_held += n_bytes

    def close(self) -> None:
        """Write what is left; the files get their final names."""
        self._write()
        if len(self._files) == 1:
            os.replace(self._folder / "1", self._folder / SINGLE)
            return
        places = {}
        for i, names in enumerate(self._files, start=1):
            file = f"model-{i:05d}-of-{len(self._files):05d}.safetensors"
            os.replace(self._folder / str(i), self._folder / file)
            places.update(dict.fromkeys(names, file))
        write_index(self._folder / INDEX, places, self._n_bytes)

    def _write(self) -> None:
        self._files.append(list(self._held))
        save_file(self._held, self._folder / str(len(self._files)), {"format": "pt"})
        self._n_bytes += self._n_held
        self._held, self._n_held = {}, 0
