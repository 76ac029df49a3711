"""What lies beside a model's weights in its folder: adapters, layers for multi-token prediction, towers, other formats.

Each is named, and either set aside, or refused before any work: an adapter that is put on in silence changes every figure,
and a prediction layer behind the last one is no layer of the decoder.
"""

import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from shoal.engine.layer_names import layer_of
from shoal.words.reading import read_json, refuse_irregular, shortened

ADAPTER = "adapter_config.json"
OBJECTS: Mapping[str, str | None] = {
    "tokenizer.json": "model",
    "tokenizer_config.json": None,
    "special_tokens_map.json": None,
    "generation_config.json": None,
}
"""Files beside the weights that are JSON objects, with a key that each has to state."""

PREDICTION_COUNTS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers", "mtp_num_layers")
PREDICTION_NAME = re.compile(r"(?:^|\.)mtp(?:_\w+)?\.")  # A head for multi-token prediction may have a name of its own.
# A layer for multi-token prediction has these parts, and a layer of a decoder has none of them.
PREDICTION_PARTS = ("eh_proj", "enorm", "hnorm", "shared_head")


def refuse_adapter(folder: Path) -> None:
    """Raises ValueError for a folder that is, or holds, an adapter: transformers would put it on without a word."""
    if not (folder / ADAPTER).exists():
        return
    stated = read_json(folder / ADAPTER)
    kind, base = (shortened(str(stated.get(key) or "?"), 60) for key in ("peft_type", "base_model_name_or_path"))
    merge = "merge it (peft: PeftModel.from_pretrained(model, folder).merge_and_unload().save_pretrained(new_folder))"
    if (folder / "config.json").exists():
        raise ValueError(
            f"{folder} holds an adapter ({ADAPTER}, {kind}) beside the model; transformers would put it on, and a cut would "
            f"lose it: {merge}, or move {ADAPTER} and its weights elsewhere"
        )
    raise ValueError(f"{folder} is an adapter ({kind}) of {base!r}, not a model; {merge}, then pass the new folder")


def refuse_irregular_files(folder: Path) -> None:
    """Raises ValueError for a pipe, socket or device in a model folder: whoever opens one waits for ever."""
    for path in sorted(folder.iterdir()):
        try:
            mode = path.stat().st_mode
        except OSError:
            continue  # A link leads nowhere; whoever needs the file says that it is not there.
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise ValueError(f"{path} is a pipe, socket or device; a model folder holds files only: remove it")


def refuse_damaged_texts(folder: Path) -> None:
    """Raises ValueError for files beside the weights that are no JSON objects, before any work: a checkpoint would get copies
    of them that nobody can open."""
    for name, needed in OBJECTS.items():
        path = folder / name
        if not path.is_symlink() and not path.exists():
            continue
        refuse_irregular(path)
        stated = path.stat()
        keys = _keys(path, stated.st_size, stated.st_mtime_ns)
        if needed is not None and needed not in keys:
            raise ValueError(f"{path} states no {needed!r}; it is not such a file: download or write it again")


@lru_cache(maxsize=64)
def _keys(path: Path, size: int, changed: int) -> frozenset[str]:
    """Keys of a JSON object in a file; a tokenizer of 20 MB is not read again while its size and time stay."""
    return frozenset(read_json(path))


def refuse_layers_behind(config: Mapping[str, Any], names: Sequence[str], prefix: str, *, n_layers: int, where: str) -> None:
    """Refuse weights that have layers behind the last one of the config, unless these are for multi-token prediction.

    Args:
        config: the part of a config dict that describes the decoder.
        prefix: of the decoder's layers in ``names``.
    Raises:
        ValueError: says how many there are and how many the config states.
    """
    inside: dict[int, set[str]] = {}
    for name in names:
        layer = layer_of(name, prefix)
        if layer is not None:
            inside.setdefault(layer, set()).add(name.removeprefix(f"{prefix}{layer}."))
    behind = sorted(layer for layer in inside if layer >= n_layers)
    stated = max((config[key] for key in PREDICTION_COUNTS if isinstance(config.get(key), int)), default=0)
    for layer in behind:
        is_marked = any(part in PREDICTION_PARTS for name in inside[layer] for part in name.split("."))
        if not is_marked and not (len(behind) <= stated and inside[layer] != inside[n_layers - 1]):
            raise ValueError(
                f"{where}: config.json states {n_layers} layers, the weights have {n_layers + len(behind)} ({prefix}{layer} is "
                "one of them); config.json and the weights are not of one model"
            )


@dataclass(frozen=True)
class Beside:
    """What lies beside the decoder, for people; prints as one line, empty where there is nothing.

    Attributes:
        behind: numbers of layers for multi-token prediction behind the last one: set aside, not written.
        heads: tensors for multi-token prediction under a name of their own: copied as they are.
        tower: tensors of another model in a wrapper, such as a vision tower: copied as they are.
        other_formats: files of a model in another format: neither read nor copied.
    """

    behind: tuple[int, ...] = ()
    heads: int = 0
    tower: int = 0
    other_formats: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = []
        if self.behind:
            runs = f"layer {self.behind[0]}" if len(self.behind) == 1 else f"layers {self.behind[0]}..{self.behind[-1]}"
            said.append(f"{runs} behind the last one, for multi-token prediction: set aside, not written")
        if self.heads:
            said.append(f"{self.heads} tensors of a head for multi-token prediction: not measured, copied as they are")
        if self.tower:
            said.append(f"{self.tower} tensors of the wrapper's other parts (a tower): not measured, copied as they are")
        if self.other_formats:
            said.append(f"{', '.join(self.other_formats)}, another format of a model: neither read nor copied")
        return "; ".join(said)


def is_prediction(name: str, prefix: str, n_layers: int) -> bool:
    """Whether a tensor is for multi-token prediction: in a layer behind the decoder's last one, or under a name of its own."""
    layer = layer_of(name, prefix)
    return (layer is not None and layer >= n_layers) or PREDICTION_NAME.search(name) is not None


def beside(folder: Path, names: Sequence[str], prefix: str, *, n_layers: int) -> Beside:
    """What lies beside the decoder of a checkpoint folder.

    Args:
        names: of all tensors; ``prefix``: of the decoder's layers among them.
    """
    layers = {layer for layer in (layer_of(name, prefix) for name in names) if layer is not None and layer >= n_layers}
    heads = [name for name in names if PREDICTION_NAME.search(name)]
    words = set(prefix.split("."))
    tower = [name for name in names if layer_of(name, prefix) is None and is_of_tower(name, words) and name not in heads]
    formats = sorted(path.name for path in folder.iterdir() if path.suffix in (".gguf", ".onnx", ".h5", ".msgpack"))
    return Beside(tuple(sorted(layers)), len(heads), len(tower), tuple(formats))


TOWER_WORDS = ("tower", "vision", "visual", "audio", "projector", "image", "speech", "video")


def is_of_tower(name: str, words: set[str]) -> bool:
    """Whether a tensor is of a wrapper's other model, by the words of its name; ``words`` are those of the decoder's prefix."""
    return any(mark in part for part in name.split(".")[:3] if part not in words for mark in TOWER_WORDS)
