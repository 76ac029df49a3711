"""Layers read from safetensors as they are needed: a model larger than memory, each weight read once per pass.

The skeleton has its parameters on the ``meta`` device and real buffers (rotary tables are computed, not stored). What is not a
layer (embeddings, final norm, head) is loaded once. A layer's tensors go through transformers' own weight conversion, so
experts that are split on disk and fused in memory need no code here; the next layer is read by a thread while one runs.

On a CPU a layer is a map of its part of the file, so its bytes are the page cache's own and are not copied; mapped pages count
as memory, so a map is gone with its layer. For a card layers are read into pinned memory.
"""

import ctypes
import mmap
import os
import platform
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from shoal.engine.beside import is_prediction
from shoal.engine.families import find_layers, text_config
from shoal.engine.layer_names import NUMBERED, decoder_prefix, layer_of
from shoal.engine.model_config import build_skeleton, describe_source
from shoal.engine.open import DTYPES, Opened, load_tokenizer, quiet_loading, refuse_nonfinite, refuse_quantised, usable_device
from shoal.engine.opening import Opening
from shoal.engine.shards import Shard, TensorSlot, read_shards
from shoal.engine.wide_products import widen

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


IN_USE = 2
"""Layers used last that are not pushed out while there are others."""


class Streamed:
    """Residency that holds ``n_resident`` layers, and one more while it is being read ahead.

    Args:
        model: from :func:`shoal.engine.model_config.build_skeleton`; its layers are filled and emptied in place.
        folder: the checkpoint.
        n_resident: layers kept in memory.
        device: where layers run. On CUDA they are read into pinned memory and copied on a stream of their own.
        state_bytes: of hidden states that a pass may keep in memory; None: a quarter of what is free when it begins.

    ``bytes_read`` counts weight bytes of layers read from disk.
    """

    layer_major = True

    def __init__(
        self,
        model: nn.Module,
        folder: Path,
        *,
        n_resident: int = 1,
        device: torch.device | str = "cpu",
        state_bytes: int | None = None,
    ) -> None:
        if n_resident < 1:
            raise ValueError(f"n_resident={n_resident} needs at least 1")
        self.model, self.folder, self.n_resident = model.requires_grad_(False), folder, n_resident
        self.device, self.state_bytes = torch.device(device), state_bytes
        self._checked: set[int] = set()
        self.bytes_read = 0
        self.path, layers = find_layers(model)
        self._layers = layers
        self._places = tensors_by_layer(read_shards(folder), len(layers), self.path)
        self._loaded: OrderedDict[int, None] = OrderedDict()
        self._ahead: dict[int, Future[dict[str, Tensor]]] = {}
        self._pages = Pages()
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shoal-reader")
        move_buffers(model, self.device)
        load_tensors(model, self._read(None), device=self.device)
        model.tie_weights()  # type: ignore[operator]
        left = [n for n, p in model.named_parameters() if p.is_meta and not n.startswith(self.path + ".")]
        if left:
            raise ValueError(f"{folder}: no tensor for {left[0]!r}; config.json and the weights are not of one model")

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        """The layer with its weights, which stay until others push it out; most of many stay from pass to pass."""
        if index not in self._loaded:
            self._make_room()
            return_freed_memory()
            self._read_ahead(index)
            tensors = self._ahead.pop(index).result()
            with self._alone(index):
                load_tensors(self.model, tensors, device=self.device)
            del tensors  # The tensors as they were read go, too: some may not be what the layer holds.
            layer = self._layers[index].requires_grad_(False)
            refuse_unfilled(layer, index)
            if index not in self._checked:
                refuse_nonfinite(layer, f"layer {index} of {self.folder}")
                self._checked.add(index)
            self._loaded[index] = None
            self._read_ahead(index + 1)
        self._loaded.move_to_end(index)
        yield self._layers[index]

    def settle(self, layers: Collection[int]) -> None:
        """Give all other layers back, what is being read ahead, and what the C library keeps of freed memory."""
        self._read_ahead(len(self._layers))
        for index in [one for one in self._loaded if one not in layers]:
            self._push_out(index)
        self._pages.clear()
        return_freed_memory()

    @contextmanager
    def _alone(self, index: int) -> Iterator[None]:
        """A model of one layer under its own index: loading walks all modules, for each layer anew."""
        place, _, name = self.path.rpartition(".")
        parent, nothing = self.model.get_submodule(place), nn.Module()
        parent._modules[name] = nn.ModuleList(self._layers[i] if i == index else nothing for i in range(len(self._layers)))
        try:
            yield
        finally:
            parent._modules[name] = self._layers

    def _make_room(self) -> None:
        while len(self._loaded) >= self.n_resident:
            # The third newest layer goes. Passes run front to back, so the layer loaded last is the one needed latest; but
            # the newest two may be running, or be read again right away.
            self._push_out(list(self._loaded)[max(0, len(self._loaded) - 1 - IN_USE)])

    def _push_out(self, index: int) -> None:
        del self._loaded[index]
        empty(self._layers[index])

    def _read_ahead(self, index: int) -> None:
        """Start reading a layer in the reader's thread, unless it is there; drop what was read for another way."""
        for stale in [i for i in self._ahead if i != index]:
            dropped = self._ahead.pop(stale)
            if not dropped.cancel():
                dropped.exception()  # The call waits: the memory that is read into is in use until the reading is done.
        if index < len(self._layers) and index not in self._loaded and index not in self._ahead:
            self._ahead[index] = self._reader.submit(self._read, index)

    def _read(self, index: int | None) -> dict[str, Tensor]:
        """Tensors of one layer (None: of everything else) under their names on disk, on the device."""
        places = self._places[index]
        self.bytes_read += 0 if index is None else sum(slot.n_bytes for _, slot in places.values())
        if self.device.type == "cpu":
            return {name: map_tensor(shard, slot) for name, (shard, slot) in places.items()}
        pages = self._pages.take({name: slot.n_bytes for name, (_, slot) in places.items()})
        with torch.cuda.stream(self._copies):  # This does nothing on a device that is not CUDA.
            tensors = {name: read_tensor(shard, slot, pages[name]) for name, (shard, slot) in places.items()}
            moved = {name: tensor.to(self.device, non_blocking=True) for name, tensor in tensors.items()}
        if self._copies is not None:
            self._copies.synchronize()  # This holds up the reader's thread, not the compute stream.
            for tensor in moved.values():
                tensor.record_stream(torch.cuda.default_stream(self.device))
        return moved


def return_freed_memory() -> None:
    """Give the system back what the C library keeps of freed blocks (glibc; elsewhere nothing is done).

    A new layer's small objects come to lie between blocks of activations, which then fit no activation any more: without this
    each layer leaves some of them behind, and a pass over many layers ends with several times its working memory
    (docs/log.md). Once per layer that is read, its cost is lost in the reading. A streamed training does it, too, between
    gradients, optimiser and measure, whose blocks do not fit each other either.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    if platform.libc_ver()[0] != "glibc":
        return None
    found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    return found


class Pages:
    """Pinned memory that layers on their way to a card are read into: of one layer, and again of the next of the same sizes."""

    def __init__(self) -> None:
        self._pages: dict[int, list[Tensor]] = {}

    def take(self, sizes: Mapping[str, int]) -> dict[str, Tensor]:
        """Bytes for each name, as (n,) uint8, valid until the next call; those that fit none of these sizes go."""
        spare, self._pages = self._pages, {}
        taken = {}
        for name, n_bytes in sizes.items():
            page = spare[n_bytes].pop() if spare.get(n_bytes) else torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)
            self._pages.setdefault(n_bytes, []).append(page)
            taken[name] = page
        return taken

    def clear(self) -> None:
        """Give all of it back, to the allocator of pinned memory."""
        self._pages.clear()


def open_streamed(
    source: str | Path,
    opening: Opening = Opening(),
    *,
    n_resident: int = 1,
) -> tuple[Opened, Streamed]:
    """Open a model without loading its layers.

    Args: as :func:`shoal.engine.open.open_model`, and ``n_resident`` as :class:`Streamed`.
    Returns: the opened skeleton, and the residency that fills its layers: ``DecoderView(opened.model, residency=streamed)``.
    Raises:
        ValueError: as ``open_model``.
    """
    place, dtype, trust = usable_device(opening.device), opening.dtype, opening.trust
    found = describe_source(source, trust_remote_code=trust)
    path = found.path
    refuse_quantised(path, what="reading one layer at a time")
    stored = text_config(found.config).dtype or torch.float32
    wanted = stored if dtype is None else DTYPES[dtype]
    model = build_skeleton(found.config, dtype=wanted, trust_remote_code=trust)
    widen(model)
    streamed = Streamed(model, path, n_resident=n_resident, device=place)
    tokenizer = load_tokenizer(path, trust_remote_code=trust)
    return Opened(model, tokenizer, str(source), found.fingerprint, path, found.beside, opening), streamed


def tensors_by_layer(
    shards: list[Shard], n_layers: int, path_in_memory: str
) -> dict[int | None, dict[str, tuple[Shard, TensorSlot]]]:
    """Every tensor by the layer its name on disk belongs to; None for the rest, such as the layers of a wrapper's tower.

    What is there for multi-token prediction is left out.
    """
    found: dict[int | None, dict[str, tuple[Shard, TensorSlot]]] = {index: {} for index in (None, *range(n_layers))}
    prefix = decoder_prefix([name for shard in shards for name in shard.slots], n_layers, path_in_memory)
    for shard in shards:
        for name, slot in shard.slots.items():
            if not is_prediction(name, prefix, n_layers):
                found[layer_of(name, prefix)][name] = (shard, slot)
    return found


def bytes_by_layer(shards: list[Shard]) -> tuple[int, int]:
    """Stored bytes of what is no layer, and of the largest layer."""
    found: dict[str | None, int] = {None: 0}
    for name, slot in ((name, slot) for shard in shards for name, slot in shard.slots.items()):
        match = NUMBERED.match(name)
        index = match[2] if match else None
        found[index] = found.get(index, 0) + slot.n_bytes
    outside = found.pop(None)
    return outside, max(found.values(), default=1)


def map_tensor(shard: Shard, slot: TensorSlot) -> Tensor:
    """One tensor of a shard as a private map of its bytes, which are in memory when this returns; gone with the tensor."""
    dtype = _torch_dtype(shard, slot)
    first = shard.data_start + slot.start
    skipped = first % mmap.ALLOCATIONGRANULARITY
    if not slot.n_bytes or skipped % dtype.itemsize:  # A dtype needs its alignment, which few files lack.
        return read_tensor(shard, slot, torch.empty(slot.n_bytes, dtype=torch.uint8))
    with shard.path.open("rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size < first + slot.n_bytes:  # Touching pages of a shorter file would kill the process.
            raise ValueError(_ended(shard))
        pages = private_map(file.fileno(), first - skipped, skipped + slot.n_bytes)
    if pages is None:
        return read_tensor(shard, slot, torch.empty(slot.n_bytes, dtype=torch.uint8))
    found = torch.frombuffer(pages, dtype=torch.uint8)
    found[:: mmap.PAGESIZE].sum()  # The pages are read here, in the reader's thread, and not when the layer runs.
    return found[skipped:].view(dtype).view(slot.shape)


def private_map(file: int, offset: int, n_bytes: int) -> ctypes.Array[ctypes.c_ubyte] | None:
    """Bytes of an open file as memory, unmapped with the object; None where the system or the file system cannot.

    Python's own maps keep a file descriptor each for as long as they live, and layers of many experts have more tensors than a
    process may have open files.
    """
    calls = _map_calls()
    if calls is None:
        return None
    map_, unmap, advise = calls
    place = map_(None, n_bytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE, file, offset)
    if place in (None, ctypes.c_void_p(-1).value):
        return None
    advise(place, n_bytes, mmap.MADV_WILLNEED)  # The disk gets one large request instead of many small ones.
    pages = (ctypes.c_ubyte * n_bytes).from_address(place)
    weakref.finalize(pages, unmap, place, n_bytes).atexit = False  # Tensors may live on until the very end.
    return pages


@cache
def _map_calls() -> tuple[Callable[..., int | None], Callable[..., int], Callable[..., int]] | None:
    if os.name != "posix" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    libc, pointer, size, number = ctypes.CDLL(None), ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    libc.mmap.argtypes, libc.mmap.restype = (pointer, size, number, number, number, ctypes.c_int64), pointer
    libc.munmap.argtypes = (pointer, size)
    libc.madvise.argtypes = (pointer, size, number)
    return libc.mmap, libc.munmap, libc.madvise


def read_tensor(shard: Shard, slot: TensorSlot, page: Tensor) -> Tensor:
    """One tensor of a shard, read into ``page`` (as many bytes), which it then views."""
    dtype = _torch_dtype(shard, slot)
    with shard.path.open("rb", buffering=0) as file, memoryview(cast(Any, page.numpy())) as view:
        file.seek(shard.data_start + slot.start)
        done = 0
        while done < slot.n_bytes:
            n = file.readinto(view[done:])
            if not n:
                raise ValueError(_ended(shard))
            done += n
    return page.view(dtype).view(slot.shape)


def _torch_dtype(shard: Shard, slot: TensorSlot) -> torch.dtype:
    if slot.dtype not in TORCH_DTYPES:
        raise ValueError(f"{shard.path} stores {slot.dtype}, which cannot be streamed; open it with --resident all")
    return TORCH_DTYPES[slot.dtype]


def _ended(shard: Shard) -> str:
    return f"{shard.path} ended while it was read; download or copy it again"


def load_tensors(model: Any, tensors: Mapping[str, Tensor], *, device: torch.device | str = "cpu") -> None:
    """Put tensors, named as on disk, into a model through transformers' own renaming and conversion."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    settings = LoadStateDictConfig(
        dtype=model.dtype,
        dtype_plan=model._get_dtype_plan(model.dtype),  # Some families keep router biases or norms in fp32.
        weight_mapping=get_model_conversion_mapping(model),
        device_map={"": device},
    )
    with quiet_loading(), torch.no_grad():
        info, _ = convert_and_load_state_dict_in_model(model, dict(tensors), settings)
    problems = [*info.mismatched_keys, *info.conversion_errors, *info.error_msgs]
    if problems:
        raise ValueError(f"a tensor does not fit the model: {problems[0]}; config.json and the weights are not of one model")


def move_buffers(model: nn.Module, device: torch.device) -> None:
    """Move what is computed, not stored (rotary tables); parameters stay on ``meta``."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)


def empty(layer: nn.Module) -> None:
    """Give a layer's weights back: its parameters return to ``meta``."""
    for module in layer.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and not parameter.is_meta:
                module._parameters[name] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)


def refuse_unfilled(layer: nn.Module, index: int) -> None:
    left = [name for name, parameter in layer.named_parameters() if parameter.is_meta]
    if left:
        raise ValueError(f"no tensor for {left[0]!r} of layer {index}; config.json and the weights are not of one model")
