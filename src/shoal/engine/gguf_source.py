"""A GGUF file as a model source: dequantised once into a plain checkpoint folder, which everything else then reads.

GGUF is the format of llama.cpp: one file with weights (mostly in blocks of 4 to 8 bits), config, tokenizer and chat template.
transformers unpacks it; the folder that is written is a cache of ours, named after the content of the file, so a file is
unpacked once however often it is opened. The original is never changed.
"""

import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from shoal.words.progress import tell
from shoal.words.records import stable_hash

MAGIC = b"GGUF"
VERSION = 1  # A folder that was written by another version is not used.
WHOLE_BYTES = 256 * 2**20  # Files up to this size are hashed whole.
N_PIECES, PIECE_BYTES = 256, 64 * 1024  # Of larger files these pieces are hashed, evenly spread.
STATED = ("general.name", "general.license", "split.count", "tokenizer.ggml.model")  # transformers reads the other keys.
KEPT_TYPES = {"F32": "float32", "F16": "float16"}  # Files without blocks keep these types; everything else becomes bfloat16.


class DequantisedSource(UserWarning):
    """Says that a source was a GGUF file, and where the checkpoint is that was read in its place."""


def gguf_in(source: Path) -> Path | None:
    """The GGUF file a source stands for: the file itself, or the only one of a folder without safetensors.

    Raises:
        ValueError: a folder with several of them.
    """
    if source.is_file():
        return source if source.suffix.lower() == ".gguf" else None
    if not source.is_dir() or any(source.glob("*.safetensors")):
        return None
    found = sorted(path for path in source.iterdir() if path.suffix.lower() == ".gguf" and path.is_file())
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:4]) + (", ..." if len(found) > 4 else "")
        raise ValueError(f"{source} holds {len(found)} GGUF files ({names}); pass one file, not the folder")
    return found[0] if found else None


def dequantised(path: Path) -> Path:
    """The plain checkpoint folder of a GGUF file, written now unless an earlier call has.

    Said aloud, once, by a :class:`DequantisedSource` warning. The folder lies under ``$XDG_CACHE_HOME/shoal/gguf``
    (``~/.cache`` by default).

    Raises:
        ValueError: as :func:`write_dequantised`.
        ImportError: the ``gguf`` package is missing.
    """
    stat = path.stat()
    folder = _cache() / f"{path.stem}-{_identity(path.absolute(), stat.st_size, stat.st_mtime_ns)}"
    if not (folder / "config.json").exists():
        write_dequantised(path, folder)
    _say(path, folder)
    return folder


@lru_cache(maxsize=64)
def _say(path: Path, folder: Path) -> None:
    """Said once; Python's own record of what was said is lost whenever a library changes a filter of warnings."""
    warnings.warn(f"{path} is a GGUF file; its weights were dequantised into {folder}", DequantisedSource, stacklevel=3)


def write_dequantised(path: Path, folder: Path, *, card: str | None = None) -> None:
    """Unpack a GGUF file into a checkpoint folder of config, safetensors, tokenizer, chat template and card.

    The weights become bfloat16; a file whose matrices are all of float32 or float16 keeps that. The folder appears whole or
    not at all.

    Args:
        card: text of its README.md; by default a short one that says where the folder is from.
    Raises:
        ValueError: not a GGUF file, damaged or cut short, one part of several, of an architecture that transformers cannot
            unpack, or its tensors are not those of its config.
        ImportError: the ``gguf`` package is missing.
    """
    from shoal.engine.open import quiet_loading

    facts = read_facts(path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    tell("dequantise the GGUF file, this once", 0, 2)
    try:
        model, tokenizer = _load(path, dtype=facts.dtype, has_tokenizer=facts.has_tokenizer)
        tell("dequantise the GGUF file, this once", 1, 2)
        with quiet_loading():
            model.save_pretrained(unfinished)
        if tokenizer is not None:
            tokenizer.save_pretrained(unfinished)
        (unfinished / "README.md").write_text(card or _card(path, facts), encoding="utf-8")
        for made in unfinished.iterdir():
            made.chmod(0o644)
        unfinished.chmod(0o755)
        if not folder.exists():  # Another process may have been faster, with the same content.
            os.rename(unfinished, folder)
        tell("dequantise the GGUF file, this once", 2, 2)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shoal" / "gguf"


@lru_cache(maxsize=64)
def _identity(path: Path, size: int, changed_ns: int) -> str:
    """16 hex digits of the content of a file; ``changed_ns`` only keeps an answer from outliving a change of the file."""
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            return stable_hash(VERSION, file.read())
        pieces = []
        for i in range(N_PIECES):
            file.seek(i * (size - PIECE_BYTES) // (N_PIECES - 1))
            pieces.append(file.read(PIECE_BYTES))
    return stable_hash(VERSION, size, *pieces)


@dataclass(frozen=True)
class GgufFacts:
    """What a GGUF file says of itself.

    Attributes:
        types: kinds of its stored matrices, ``Q4_1`` for instance.
        name, licence: as stated, or None.
    """

    types: tuple[str, ...]
    name: str | None
    licence: str | None
    has_tokenizer: bool

    @property
    def dtype(self) -> str:
        """What the weights are unpacked into."""
        return KEPT_TYPES.get(self.types[0], "bfloat16") if len(self.types) == 1 else "bfloat16"


def read_facts(path: Path) -> GgufFacts:
    """Read the head of a GGUF file.

    Raises:
        ValueError, ImportError: see :func:`write_dequantised`.
    """
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise ValueError(f"{path} is not a GGUF file (it does not start with {MAGIC.decode()}); download it again")
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ImportError(f"reading {path.name} needs the gguf package: pip install 'shoal[gguf]'") from None
    try:
        reader = GGUFReader(path)
        types = sorted({one.tensor_type.name for one in reader.tensors if len(one.shape) > 1})
        stated = {key: field.contents() for key, field in reader.fields.items() if key in STATED}
    except (ValueError, IndexError, KeyError, OverflowError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path} is damaged, cut short or of an unknown version ({reason}); download it again") from None
    if int(stated.get("split.count", 1)) > 1:
        raise ValueError(f"{path} is one of {stated['split.count']} parts; join them first: llama-gguf-split --merge")
    if not types:
        raise ValueError(f"{path} holds no weights; a file with the model is needed, not its vocabulary alone")
    name, licence = stated.get("general.name"), stated.get("general.license")
    return GgufFacts(tuple(types), name, licence, "tokenizer.ggml.model" in stated)


def _load(path: Path, *, dtype: str, has_tokenizer: bool) -> tuple[Any, Any | None]:
    """Model and tokenizer of a GGUF file."""
    import torch
    import transformers
    from huggingface_hub.errors import StrictDataclassError
    from transformers import modeling_gguf_pytorch_utils as unpacking

    from shoal.engine.open import quiet_loading, refuse_other_tensors

    options: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    packed: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # Older versions always unpack; newer ones keep the blocks unless asked not to.
        packed["quantization_config"] = transformers.GgufConfig(dequantize=True)
    where = str(path.parent)
    unpacking.tqdm = transformers.logging.tqdm  # Its own bar, alone among those of transformers, cannot be turned off.
    with quiet_loading():
        try:
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                where, dtype=getattr(torch, dtype), output_loading_info=True, **options, **packed
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options) if has_tokenizer else None
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{path} cannot be unpacked by transformers: {type(error).__name__}: {reason}") from None
    refuse_other_tensors(model, info, str(path))
    return model, tokenizer


def _card(path: Path, facts: GgufFacts) -> str:
    """A README.md that says where the folder is from; a licence in it is inherited by the card of a student."""
    licence = f"license: {facts.licence}\n" if facts.licence else ""
    return (
        f"---\nlibrary_name: transformers\n{licence}---\n\n# {facts.name or path.stem}\n\n"
        f"Dequantised from `{path.name}` (GGUF, weights of {', '.join(facts.types)}) into {facts.dtype}. The values are "
        "those of the GGUF file: what its quantisation has lost is lost here, too.\n"
    )
