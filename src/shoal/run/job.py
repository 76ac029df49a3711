"""What every stage starts from: the opened model, its view, and the four slices of text, cut as the recipe asks."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.engine.opening import Opening
from shoal.engine.workers import ALONE, Workers, join
from shoal.recipes.recipe import Recipe, TextChoice
from shoal.train.config import DEFAULT_TOKENS
from shoal.words.records import Provenance, stable_hash

if TYPE_CHECKING:
    from torch import Tensor

    from shoal.engine.open import Opened
    from shoal.engine.residency import Residency
    from shoal.engine.view import DecoderView
    from shoal.text.corpus import Corpus
    from shoal.text.samples import Samples
    from shoal.words.types import Batch


SHARE_FOR_WEIGHTS = 0.7  # Weights take this share of the free memory; the rest is for activations.
SHARE_BESIDE_STUDENT = 0.45  # They take less where the student is opened beside its teacher, to be verified.
TOKENS_PER_BATCH = 4096
LONGEST_DEFAULT = 1024
MOST_DEFAULT = {"calibration": 128, "selection": 64, "evaluation": 64}  # A slice has at most so many samples.
PARTS = {"calibration": 2, "selection": 1, "evaluation": 1}  # A slice may have fewer samples: so many times text.tokens.
FEWEST_DEFAULT = 8


def samples_of(text: TextChoice, slice: str, length: int) -> int:
    """Samples of the slice ``calibration``, ``selection`` or ``evaluation``: as asked, else as many as hold the text's tokens.

    They are counted in tokens, because tokens cost time: 128 samples of 1,024 would be four times the text of 128 samples of
    256. The calibration has twice the tokens of the other two.
    """
    asked = {"calibration": text.samples, "selection": text.selection, "evaluation": text.evaluation}[slice]
    return asked or max(FEWEST_DEFAULT, min(MOST_DEFAULT[slice], PARTS[slice] * text.tokens // length))


def bundled_model() -> Path:
    """The model inside the package."""
    return Path(str(resources.files("shoal") / "assets" / "books-16l"))


@dataclass(frozen=True, eq=False)
class Inputs:
    """A model and text, opened once for all stages of a run.

    Attributes:
        workers: the processes of this job; each has the whole model, the first reads text for all of them.
        corpus: None on the others.
        opened_at: when the run had opened its model, on a clock that only goes forward.
        not_healed: why the run leaves out its optional healing, for people; empty where it does not.
        refusals: what the family said of layers to keep, so far.
    """

    recipe: Recipe
    opened: Opened
    view: DecoderView
    corpus: Corpus | None
    workers: Workers = ALONE
    opened_at: float = field(default_factory=time.monotonic)
    not_healed: str = ""
    refusals: dict[tuple[int, ...], str | None] = field(default_factory=dict)

    @cached_property
    def length(self) -> int:
        """Tokens per sample.

        Raises:
            ValueError: longer than the model's window.
        """
        window = window_of(self.view.config)
        asked = self.recipe.text.length
        if asked is not None and window is not None and asked > window:
            raise ValueError(f"--length {asked} is longer than this model's window of {window} tokens; give at most {window}")
        return asked or min(window or LONGEST_DEFAULT, LONGEST_DEFAULT)

    @cached_property
    def calibration(self) -> Samples:
        return self._samples("calibration", self.recipe.text.samples)

    @cached_property
    def selection(self) -> Samples:
        return self._samples("selection", self.recipe.text.selection)

    @cached_property
    def evaluation(self) -> Samples:
        return self._samples("evaluation", self.recipe.text.evaluation)

    @cached_property
    def training(self) -> Samples:
        """The text of polishing: as many samples as the recipe's tokens need."""
        return self.training_for(self.recipe.train.all_tokens())

    def training_for(self, tokens: int | None, *, length: int | None = None) -> Samples:
        """Samples of the training slice for that many tokens; without a number, 1 M tokens or what the text holds.

        Args:
            length: tokens of a packed sample, where they are not those of the other slices.
        """
        is_padded = self.recipe.text.packing == "padded"
        if tokens is not None and not is_padded:
            length = length or self.length
            return self._samples("training", -(-tokens // length), length=length)
        return self.training_up_to(DEFAULT_TOKENS if tokens is None else tokens)

    def training_up_to(self, wanted: int) -> Samples:
        """Samples of the training slice with about that many tokens, or what the text holds, eight at least."""
        most = max(FEWEST_DEFAULT, wanted // self.length)
        found = self._samples("training", None, most=most)
        # Padded samples are rarely full.
        while self.recipe.text.packing == "padded" and found.n_tokens < wanted and found.n_samples == most:
            most *= 2
            found = self._samples("training", None, most=most)
        return found

    @cached_property
    def fitting(self) -> Samples:
        """Samples of the training slice for a closed-form repair: as many as its tokens need where the text holds them."""
        return self.training_up_to(self.recipe.fit.n_tokens(self.widest_map))

    @property
    def widest_map(self) -> int:
        """Inputs of the widest map into the stream."""
        return int(max(getattr(self.view.config, "intermediate_size", None) or 0, 4 * self.view.hidden_size))

    def batches(self, samples: Samples) -> list[Batch]:
        return samples.batches(self.batch_size)

    @property
    def batch_size(self) -> int:
        return max(1, TOKENS_PER_BATCH // self.length)

    @property
    def is_streamed(self) -> bool:
        """True when layers are read from disk as they are needed, so that no stage may ask for all of them at once."""
        return self.view.residency.layer_major

    @property
    def model_key(self) -> str:
        """Identity of the model as it runs: weights, dtype, kind of device, batch size, library versions."""
        kind = self.view.device.type
        return stable_hash(self.opened.fingerprint, str(self.view.dtype), kind, self.batch_size, versions())

    def provenance(self, samples: Samples) -> Provenance:
        return Provenance(
            model=self.opened.name,
            model_hash=self.opened.fingerprint,
            data=samples.data,
            data_hash=samples.data_hash,
            n_samples=samples.n_samples,
            n_tokens=samples.n_tokens,
            length=samples.length,
            seed=samples.seed,
            share=samples.share,
            text_goes_on=samples.goes_on,
            dtype=str(self.view.dtype).removeprefix("torch."),
            versions=versions(),
        )

    def _samples(self, slice: str, asked: int | None, *, most: int | None = None, length: int | None = None) -> Samples:
        """The number asked for, or else the default where the text holds it and at least 8."""
        n = asked or most or samples_of(self.recipe.text, slice, self.length)
        fewest = None if asked else FEWEST_DEFAULT
        length, packing = length or self.length, self.recipe.text.packing

        def read() -> Samples:
            assert self.corpus is not None
            found = self.corpus.samples(slice, n=n, length=length, packing=packing, fewest=fewest)
            refuse_unknown_tokens(found.ids_NT, self.opened)
            return found

        return self.workers.from_first(read)


def open_inputs(
    recipe: Recipe,
    opening: Opening = Opening(),
    *,
    share: float = SHARE_FOR_WEIGHTS,
) -> Inputs:
    """Open model and text.

    Args:
        opening: with ``auto``, all layers are in memory where the weights fit in a share of the memory that is free, else those
            that fit in half of it.
        share: that share.
    Raises:
        ValueError: one line for anything the user can mend.
    """
    if recipe.model is None:
        raise ValueError("no model given; name a hub id or a folder (model: in the recipe, or on the command line)")
    from shoal.engine.open import open_model
    from shoal.engine.streamed import open_streamed
    from shoal.engine.view import DecoderView
    from shoal.text.corpus import bundled_text, open_corpus

    model, workers = recipe.model, join()
    here = opening.for_process(workers)
    n_resident = workers.from_first(lambda: layers_in_memory(model, here, share=share))
    residency: Residency | None = None
    if n_resident is None:
        opened = open_model(model, here)
    else:
        opened, residency = open_streamed(model, here, n_resident=n_resident)
    not_healed = ""
    if opened.quantised is not None:
        asked, recipe = recipe, without_new_values(recipe, opened.path, opened.quantised)
        not_healed = f"the model is quantised ({opened.quantised}) and gets no new values" if asked.heal is not None else ""
    sources: Sequence[Any] = recipe.text.sources or (bundled_text(),)
    tokenizer = opened.need_tokenizer()
    given = sources if len(sources) > 1 else sources[0]
    corpus = workers.on_first(lambda: open_corpus(given, tokenizer, seed=recipe.seed, field=recipe.text.field))
    return Inputs(recipe, opened, DecoderView(opened.model, residency=residency), corpus, workers, not_healed=not_healed)


def without_new_values(recipe: Recipe, path: Path, method: str) -> Recipe:
    """The recipe for a quantised model, which gets no new values: the repair that is there unless another is asked for is none.

    Args:
        path, method: of the quantised checkpoint.
    Raises:
        ValueError: a replacement, a repair, training or healing was asked for by name; sublayers, whose maps become zeros;
            merged layers, zeros among the weights, or new layers that are no copies.
    """
    from shoal.edits.inits import INITS
    from shoal.engine.quantised import refuse_new_values
    from shoal.fit.table import REPAIRS

    asked = {
        f"--replace {recipe.replace}": recipe.replace != "none",
        f"--repair {recipe.repair}": recipe.repair != "none" and not REPAIRS.named(recipe.repair).else_plain,
        "training": recipe.repair != "none" and recipe.training() is not None,
        "healing": recipe.heal is not None and not recipe.heal.optional,
        f"--units {recipe.units}": recipe.units != "layers",
        f"--select {recipe.select}": recipe.merges_layers,
        "--prune": recipe.prune is not None,
    }
    if recipe.grow is not None:
        asked[f"--init {recipe.grow.init}"] = INITS.named(recipe.grow.init).makes_values
    what = next((name for name, is_asked in asked.items() if is_asked), None)
    if what is not None:
        refuse_new_values(path, method, what=what)
    return recipe.model_copy(update={"repair": "none", "heal": None})


def layers_in_memory(model: str, opening: Opening, *, share: float = SHARE_FOR_WEIGHTS) -> int | None:
    """Layers to hold at a time, or None for all of them.

    ``auto`` holds what fits in ``share`` of the free memory; where that is not all, as many layers as fit in half of it beside
    the embeddings: most of them stay from pass to pass, and the rest is left to what a run of a large model needs beside them.

    Raises:
        ValueError: not ``all``, ``auto`` or a number of layers.
    """
    resident = opening.resident
    if resident == "all":
        return None
    if resident == "auto":
        from shoal.engine.shards import read_shards
        from shoal.engine.source import resolve_source
        from shoal.engine.streamed import bytes_by_layer

        n_bytes, room = weights_and_room(model, opening)
        if n_bytes < share * room:
            return None
        outside, of_layer = bytes_by_layer(read_shards(resolve_source(model, trust_remote_code=opening.trust)))
        return max(2, int((share * room / 2 - outside) / of_layer) - 1)  # One more layer is read ahead.
    if not (resident.isascii() and resident.isdigit()) or int(resident) < 1:
        raise ValueError(f"--resident {resident!r} needs all, auto, or a number of layers from 1")
    return int(resident)


def weights_and_room(model: str, opening: Opening) -> tuple[int, int]:
    """Bytes of a model's weights as stored, and of the memory that is free for them: a card's where they go to one.

    Raises:
        ValueError: no such model or device.
    """
    from shoal.engine.open import usable_device
    from shoal.engine.shards import read_shards
    from shoal.engine.source import check_source, resolve_source
    from shoal.engine.spill import free_memory, free_on_card

    path = resolve_source(model, trust_remote_code=opening.trust)
    check_source(path, trust_remote_code=opening.trust)
    n_bytes = sum(slot.n_bytes for shard in read_shards(path) for slot in shard.slots.values())
    room, place = free_memory(), usable_device(opening.device)
    # The weights of a card pass through memory.
    return n_bytes, min(room, free_on_card(place)) if place.type == "cuda" else room


def refuse_unknown_tokens(ids: Tensor, opened: Opened) -> None:
    """Raises ValueError when the tokenizer writes tokens that the model has no embedding for."""
    highest, n_known = int(ids.max()), opened.model.get_input_embeddings().num_embeddings
    if highest >= n_known:
        raise ValueError(
            f"the tokenizer of {opened.path} writes token {highest}, the model knows 0..{n_known - 1}; they do not match"
        )


def window_of(config: Any) -> int | None:
    """The longest sequence a model was made for, or None where its config states none."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


@cache
def _version(package: str) -> str:
    """Of an installed package; its metadata are a file that takes 15 ms to read."""
    return metadata.version(package)


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    from shoal import __version__

    return {
        "shoal": __version__,
        "torch": _version("torch"),
        "transformers": _version("transformers"),
        "python": platform.python_version(),
    }
