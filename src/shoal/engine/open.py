"""Open a model: checked before loading, loaded strictly, checked again for NaN. Nothing is randomly initialised in silence."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shoal.engine.beside import Beside, is_prediction
from shoal.engine.families import find_layers
from shoal.engine.model_config import describe, describe_source
from shoal.engine.opening import Opening
from shoal.engine.quantised import refuse_new_values, refuse_plain_weights, refuse_unopenable
from shoal.engine.shards import read_shards
from shoal.engine.source import TOKENIZER_FILES, auto_class, quantisation
from shoal.engine.spread import device_map, devices_of
from shoal.engine.wide_products import widen
from shoal.words.reading import guarded, read_json
from shoal.words.records import nearest
from shoal.words.refusal import in_one_line

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, eq=False)
class Opened:
    """A model in memory, in eval mode.

    Attributes:
        model: an AutoModelForCausalLM model.
        tokenizer: None when the folder has none (an error only where text is needed, see :meth:`need_tokenizer`).
        name: what the user asked for.
        fingerprint: identity of config and weights on disk (:func:`shoal.engine.source.fingerprint`).
        path: the local folder.
        beside: what the folder holds beside the decoder.
        opening: how it was opened; a checkpoint made of it is opened in the same way.
        quantised: the method of a quantised checkpoint; it can be run and cut, and gets no new values.
    """

    model: Any
    tokenizer: Any | None
    name: str
    fingerprint: str
    path: Path
    beside: Beside = Beside()
    opening: Opening = Opening()
    quantised: str | None = None

    def need_tokenizer(self) -> Any:
        """The tokenizer. Raises ValueError when the model came without one."""
        if self.tokenizer is None:
            raise ValueError(
                f"{self.path} has no tokenizer files; text needs one: copy tokenizer.json and tokenizer_config.json there"
            )
        return self.tokenizer


@in_one_line
def open_model(source: str | Path, opening: Opening = Opening()) -> Opened:
    """Open a local folder or a hub id.

    Args:
        opening: its ``resident`` is not read; all layers are in memory.
    Raises:
        ValueError: one line for everything :func:`shoal.engine.model_config.describe` finds, for quantised checkpoints that
            nothing here opens, for missing, unexpected or mismatched tensors, NaN or infinite weights, unknown dtype or device.
    """
    dtype, trust = opening.dtype, opening.trust
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; {nearest(dtype, DTYPES)}")
    for device in devices_of(opening.device):
        usable_device(device)
    found = describe_source(source, trust_remote_code=trust)
    path = found.path
    model = load_strictly(path, dtype=dtype, device=opening.device, trust_remote_code=trust)
    refuse_nonfinite(model, str(path))
    tokenizer = load_tokenizer(path, trust_remote_code=trust)
    refuse_two_way(model, str(path))
    return Opened(model, tokenizer, str(source), found.fingerprint, path, found.beside, opening, found.quantised)


def refuse_quantised(path: Path, *, what: str) -> None:
    """Raises ValueError for a quantised checkpoint where weights are trained, or read one layer at a time."""
    method = quantisation(read_json(path / "config.json"))
    refuse_new_values(path, method, what=what)


def usable_device(device: str) -> torch.device:
    """A torch device that works here. Raises ValueError when it does not."""
    try:
        found = torch.zeros(1, device=torch.device(device), dtype=torch.float64)
        found.item()  # Sums are fp64, which mps has not, and meta holds no values.
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")[:80]
        cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
        here = ", ".join(["cpu", *(f"cuda:{card}" for card in range(cards))])
        raise ValueError(f"device {device!r} cannot be used here ({reason}); torch finds {here} on this machine") from None
    return found.device  # The device has its number, so that it equals the device of what lives there.


def load_strictly(path: Path, *, dtype: str | None = None, device: str = "cpu", trust_remote_code: bool = False) -> Any:
    """``AutoModelForCausalLM.from_pretrained`` in eval mode that fails on any missing, unexpected or mismatched tensor.

    Raises:
        ValueError: the tensors on disk are not those the config asks for, or the library cannot build the model, or not open
            its quantisation here.
    """
    config = read_json(path / "config.json")
    auto, method = auto_class(config), quantisation(config)
    devices, kept = devices_of(device), None if dtype is None else DTYPES[dtype]
    where: dict[str, Any] = {}
    if len(devices) > 1:
        refuse_spread_packed(path, method)
        shapes = describe(path, trust_remote_code=trust_remote_code).model
        where = {"device_map": device_map(shapes, devices, dtype=kept or getattr(shapes.config, "dtype", None))}
    if method is not None:  # Quantised weights are put where they run while they are read.
        refuse_plain_weights(path, method, read_shards(path))
        refuse_unopenable(path, method)
        where = {"device_map": {"": devices[0]}}
    doubt = "" if method is None else f"; its blocks ({method}) may lack a part"
    with quiet_loading(), guarded(f"{path} cannot be opened{doubt}"):
        model, info = auto.from_pretrained(
            str(path),
            dtype="auto" if kept is None else kept,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # Such tensors are listed here, then refused below.
            output_loading_info=True,
            **where,
        )
    refuse_other_tensors(model, info, str(path))
    model = (model if where else model.to(devices[0])).eval()
    widen(model)
    return model


def refuse_spread_packed(path: Path, method: str | None) -> None:
    """Raises ValueError for a quantised checkpoint that would be spread over cards: its packed weights were not tried so."""
    if method is not None:
        raise ValueError(f"{path} is quantised ({method}) and is opened on one card; give --device cuda, or cuda:1")


def refuse_other_tensors(model: Any, info: dict[str, Any], where: str) -> None:
    """Raises ValueError where the loading info of transformers lists missing, unexpected or mismatched tensors.

    What is there for multi-token prediction is expected.
    """
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(one[0]) if isinstance(one, tuple) else str(one) for one in info.get(kind) or ())
        if kind == "unexpected_keys" and names:
            in_memory, layers = find_layers(model)
            names = [name for name in names if not is_prediction(name, f"{in_memory}.", len(layers))]
        if names:
            fault = kind.removesuffix("_keys")
            raise ValueError(
                f"{where}: {len(names)} {fault} tensors, first {names[0]!r}; its config and its weights are not of one model"
            )


def load_tokenizer(path: Path, *, trust_remote_code: bool = False) -> Any | None:
    """The folder's tokenizer, or None when it has no tokenizer files. Raises ValueError when they cannot be read."""
    if not any((path / name).exists() for name in TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    with quiet_loading(), guarded(f"the tokenizer of {path} cannot be read"):
        return AutoTokenizer.from_pretrained(str(path), trust_remote_code=trust_remote_code, local_files_only=True)


def refuse_nonfinite(model: nn.Module, where: str) -> None:
    """Raises ValueError naming the first parameter that holds NaN or infinity."""
    names, finite = [], []
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.numel() and not parameter.is_meta:
            names.append(name)
            # Numbers in fp8 have no order.
            values = parameter.detach().float() if parameter.element_size() == 1 else parameter.detach()
            finite.append(torch.isfinite(torch.stack(torch.aminmax(values))).all())  # No copy of a plain weight is made.
    where_asked = {one.device for one in finite}
    said = torch.stack(finite).tolist() if len(where_asked) == 1 else [bool(one) for one in finite]  # A card is asked once.
    for name, is_finite in zip(names, said, strict=True):
        if not is_finite:
            raise ValueError(f"{where}: weight {name!r} holds NaN or infinite values; the checkpoint is damaged, use another")


@torch.no_grad()
def refuse_two_way(model: Any, where: str) -> None:
    """Raises ValueError when a token sees the tokens after it (BERT-like models have a language model class, too)."""
    first, second = (
        model(input_ids=torch.tensor([[0, *rest]], device=model.device), use_cache=False).logits[0, 0].float()
        for rest in ((0, 0), (1, 1))
    )
    # A causal model gives equal logits up to the order of sums (experts are batched by choice); a two-way one is far off.
    limit = (1e-3 if model.dtype == torch.float32 else 5e-2) * float(first.abs().max())
    if float((first - second).abs().max()) > limit:
        raise ValueError(
            f"{where}: in this {model.config.model_type!r} model tokens see the tokens after them; "
            "it is not a causal language model"
        )


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence the progress bars and reports of transformers; what matters in them is raised as an error here.

    What other libraries print meanwhile, such as gptqmodel's banner, goes to stderr: stdout is the result's.
    """
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
