"""A recipe: the choice of text, score, selector, guard, repair and training that makes one method. A paper is a recipe.

Recipes are data: typed, validated (unknown key: an error with the nearest), readable as YAML, and complete enough to redo a
run. Those that have a name are in :mod:`shoal.recipes.named`, one file each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import yaml
from pydantic import Field, ValidationInfo, field_validator, model_validator

from shoal.edits.base import MOST_LAYERS
from shoal.edits.replace.table import parse_replacement
from shoal.fit.fit_config import LINEAR_ERROR, FitConfig
from shoal.fit.repair import TrainedOn
from shoal.fit.table import REPAIRS
from shoal.measure.observers import OBSERVERS
from shoal.prune.prune_config import PruneConfig, parse_prune
from shoal.recipes.named_choice import OF_NAMED
from shoal.select.budget import parse_budget, parse_parameters, parse_size
from shoal.select.grow_config import GrowConfig
from shoal.select.merging.merge_config import MergeConfig
from shoal.select.search.search_config import SearchConfig
from shoal.select.table import SELECTORS, selects_merges
from shoal.train.config import POLISH, TrainConfig
from shoal.train.heal.config import HealConfig
from shoal.words.counts import MOST_LENGTH, SampleCount, SeedNumber, TokenCount
from shoal.words.records import Record, is_asked, nearest, refuse
from shoal.words.types import UnitChoice
from shoal.words.unit_names import parse_units


class TextChoice(Record):
    """Which text, how much of it, and how it is cut into samples.

    Attributes:
        sources: paths, folders, ``hub:NAME`` or mixtures; empty: the bundled sample.
        field: column of the rows that holds the text or the turns of a chat; None: found by its name.
        tokens: of selection and of evaluation each, where their samples are not asked for; calibration has twice as many.
        samples: calibration samples; None: 128 or as many as its tokens fill, fewer where the text holds fewer (at least 8).
        length: tokens per sample; None: the model's window, at most 1024.
        packing: ``packed`` blocks of one length, or one document per ``padded`` sample.
        selection, evaluation: samples of those slices; None: as for ``samples``, up to 64.
    """

    sources: tuple[str, ...] = ()
    field: str | None = Field(default=None, min_length=1)
    tokens: TokenCount = 16_384
    samples: SampleCount | None = None
    length: int | None = Field(default=None, ge=2, le=MOST_LENGTH)
    packing: Literal["packed", "padded"] = "packed"
    selection: SampleCount | None = None
    evaluation: SampleCount | None = None

    @field_validator("sources", mode="before")
    @classmethod
    def _one_source(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


CHOOSING = {
    "drop": "--drop", "parameters": "--params", "size": "--size", "select": "--select", "search": "--metric or --evaluations",
    "merge": "merge", "by": "--by", "max_spans": "max_spans", "rounds": "--rounds", "protect": "--protect", "guard": "--guard",
}  # fmt: skip
"""Fields that say how layers are chosen, with their options; none of them is read where the layers are named."""

MOST_CANDIDATES = 1000
"""That many are repaired and compared at most: each takes a repair, and selectors propose far fewer."""


OPENED_BY = {"device": "--device", "dtype": "--dtype", "resident": "--resident", "trust": "--trust-remote-code"}
OF_OPENING = "how a model is opened is no part of a recipe: {option} on the command line, opening=Opening({key}=...) in Python"


class Recipe(Record):
    """Everything ``shoal run`` needs besides the machine.

    Attributes:
        name, about, papers: for people, the card and the citations (arXiv numbers).
        model: hub id or folder; may come from the command line instead.
        text: which text is read, and how much of it.
        observers: further measures of the scan, names of :data:`shoal.measure.observers.OBSERVERS`; each adds tables to it.
        drop: the budget, as on the command line (``25%``, ``8``, ``25%layers``, ``20%params,25%kv``).
        parameters: the budget as a target size (``6B``, ``2B active``), or ``size``: that of the weights (``4GB``); replaces
            ``drop`` when given.
        layers: what goes, by number (``4,6,20..24``, ``attn:5..8``; ``none``: nothing), or ``keep``: the layers that stay
            (``0..15``). Nothing is chosen then, so that no other field of the choice, ``drop`` to ``guard``, goes with them.
        select: how layers are chosen, a name of :data:`shoal.select.table.SELECTORS`; ``by``: the table it reads, as
            ``criterion/tokens``, or a score of single units such as ``taylor_unit`` or ``left_out_kl``.
        units: what goes: whole ``layers``; ``sublayers``, ``attention`` or ``mlp`` for selectors that do not look for spans.
        search: how a selector that runs the model does so; unused by the others. ``merge``: how one that merges layers does.
        max_spans: most spans of the ``disjoint`` selector.
        rounds: 1 = one-shot; more: cut in that many steps and measure anew after each.
        protect: layers that stay, negative ones counted from the end.
        guard: candidates compared by true KL on the selection slice; 1 = the selector's own choice stands.
        replace: module in place of each removed span, ``NAME`` or ``NAME:option=value,...`` (``none``: plain removal).
        repair: closed form, no new parameters; its name in :data:`shoal.fit.table.REPAIRS`.
        fit: how much text the repair reads and how tokens count; unused with ``repair: none``.
        polish: gradient training of exactly what replacement, repair and merges put in: on ``hidden`` states, on the
            teacher's logits (``kl``), or ``none``. None: as ``train`` says where it names an objective or stages; else
            ``hidden`` where something is put in place of a span, ``none`` where nothing is.
        train: how it is trained; unused where nothing is.
        grow: new layers; then, too, nothing is chosen. Layers may be named beside it, which go first.
        prune: weights of the layers that stay, set to zero behind all that; None: none are.
        heal: training of anything else behind all that, into the final checkpoint; None: nothing more is trained.
        speed: whether the evaluation measures how fast teacher and student run.
        seed: the order of the text, and all that is drawn.
    """

    ELSEWHERE: ClassVar[Mapping[str, str]] = {
        **{key: OF_OPENING.format(option=option, key=key) for key, option in OPENED_BY.items()},
        "out": "where a run goes is no part of a recipe: --out on the command line",
        "overwrite": "it is said for one run: --overwrite on the command line",
    }

    name: str = "custom"
    about: str = ""
    papers: tuple[str, ...] = ()
    model: str | None = None
    text: TextChoice = TextChoice()
    observers: tuple[str, ...] = ()
    drop: str = "25%"
    parameters: str | None = None
    size: str | None = None
    layers: str | None = None
    keep: str | None = None
    grow: GrowConfig | None = None
    select: str = "span"
    units: UnitChoice = "layers"
    search: SearchConfig = SearchConfig()
    merge: MergeConfig = MergeConfig()
    by: str = "cosine/rest"
    max_spans: int = Field(default=3, ge=1, le=MOST_LAYERS)
    rounds: int = Field(default=1, ge=1, le=MOST_LAYERS)
    protect: tuple[int, ...] = (0, -1)
    guard: int = Field(default=4, ge=1, le=MOST_CANDIDATES)
    replace: str = "none"
    repair: str = "auto"
    fit: FitConfig = FitConfig()
    polish: str | None = None
    train: TrainConfig = TrainConfig()
    prune: PruneConfig | None = None
    heal: HealConfig | None = None
    speed: bool = True
    seed: SeedNumber = 0

    @field_validator("text", mode="before")
    @classmethod
    def _sources_alone(cls, value: object) -> object:
        """A path, or a list of them, in place of the keys below ``text``."""
        alone = [value] if isinstance(value, str) else value
        return {"sources": alone} if isinstance(alone, (list, tuple)) else value

    @field_validator("observers", "prune", "heal", mode="before")
    @classmethod
    def _one_name(cls, value: object, info: ValidationInfo) -> object:
        """As on the command line: ``cka``, ``wanda:pattern=2:4``, ``lora``, ``none``."""
        if not isinstance(value, str) or info.field_name == "observers":
            return [value] if isinstance(value, str) else value
        return parse_prune(value) if info.field_name == "prune" else None if value == "none" else {"method": value}

    @field_validator("protect", mode="before")
    @classmethod
    def _layers_as_numbers(cls, value: object) -> object:
        """As on the command line: ``0,1,-1``, or ``none``."""
        if not isinstance(value, str):
            return [value] if isinstance(value, int) and not isinstance(value, bool) else value
        try:
            return [] if value == "none" else [int(part) for part in value.split(",")]
        except ValueError:
            raise ValueError(f"--protect {value!r} needs layer numbers with commas, such as 0,1,-1, or none") from None

    @field_validator("drop", mode="before")
    @classmethod
    def _drop_as_text(cls, value: object) -> object:
        if isinstance(value, float):
            raise ValueError(f"--drop {value} has no unit; write {100 * value:g}% of all parameters, or a number of layers")
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("drop")
    @classmethod
    def _readable_drop(cls, value: str) -> str:
        parse_budget(value)
        return value

    @field_validator("parameters")
    @classmethod
    def _readable_parameters(cls, value: str | None) -> str | None:
        if value:
            parse_parameters(value)
        return value

    @field_validator("size")
    @classmethod
    def _readable_size(cls, value: str | None) -> str | None:
        if value:
            parse_size(value)
        return value

    @field_validator("layers", "keep", mode="before")
    @classmethod
    def _units_as_text(cls, value: object) -> object:
        parts = value if isinstance(value, (list, tuple)) else [value]
        is_listed = all(isinstance(part, (int, str)) and not isinstance(part, bool) for part in parts)
        return ",".join(map(str, parts)) if is_listed else value

    @field_validator("layers", "keep")
    @classmethod
    def _readable_units(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            parse_units(value, option=f"--{info.field_name}")
        return value

    @field_validator("observers")
    @classmethod
    def _known_observers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(OBSERVERS.named(name).name for name in dict.fromkeys(value))

    @field_validator("select")
    @classmethod
    def _known_selector(cls, value: str) -> str:
        SELECTORS.named(value)
        return value

    @field_validator("by")
    @classmethod
    def _known_score(cls, value: str, info: ValidationInfo) -> str:
        if is_asked(cls, value, info):
            from shoal.measure.criteria import CRITERIA, TOKENS
            from shoal.measure.unit_scores import unit_tables

            known = [f"{criterion}/{tokens}" for criterion in CRITERIA for tokens in TOKENS]
            known += [*_observed(info.data.get("observers", ())), LINEAR_ERROR]
            if value not in known and value not in unit_tables():
                raise ValueError(f"--by {value!r} is no score; {nearest(value, [*known, *unit_tables()])}")
        return value

    @field_validator("replace")
    @classmethod
    def _known_replacement(cls, value: str) -> str:
        parse_replacement(value)
        return value.strip()

    @field_validator("repair")
    @classmethod
    def _known_repair(cls, value: str) -> str:
        return REPAIRS.named(value).name

    @field_validator("polish")
    @classmethod
    def _known_polish(cls, value: str | None) -> str | None:
        if value is not None and value not in ("none", *POLISH):
            raise ValueError(f"unknown polish {value!r}; {nearest(value, ('none', *POLISH))}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _nothing_to_choose(cls, content: Any) -> Any:
        """Where layers are named no candidates compete, nor where merges were compared by running them, unless asked to."""
        if not isinstance(content, dict):
            return content
        if any(content.get(name) is not None for name in ("layers", "keep", "grow")):
            return {**content, "guard": 1, "rounds": 1}
        return {"guard": 1, **content} if selects_merges(content.get("select")) else content

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        conflicts = (
            self._conflicts_of_choice,
            self._conflicts_of_units,
            self._conflicts_of_repair,
        )
        refuse([said for one in conflicts for said in one()] + [said for one in OF_NAMED for said in one(self)])
        return self

    def _conflicts_of_choice(self) -> Iterator[str]:
        if self.parameters and self.size:
            yield f"parameters {self.parameters} and size {self.size} are two budgets; give one of them"
        if self.rounds > 1 and "values" in SELECTORS.named(self.select).reads:
            yield f"--rounds measures scores anew, and --select {self.select} reads none; leave out --rounds"
        if self.by == LINEAR_ERROR and (self.select != "span" or self.rounds > 1):
            yield f"--by {LINEAR_ERROR} ranks contiguous spans of the length that goes: use --select span, and --rounds 1"
        if self.rounds > 1 and self.by in _observed(self.observers):
            yield f"rounds measure the pairwise scores only; with --rounds choose another score than {self.by}"

    def _conflicts_of_units(self) -> Iterator[str]:
        from shoal.measure.unit_scores import is_unit_table

        selector = SELECTORS.named(self.select)
        reads_units = "tables" in selector.reads and is_unit_table(self.by)
        if reads_units and not selector.takes_units:
            yield f"--by {self.by} scores single units, and --select {self.select} looks for spans; use --select lowest"
        if reads_units and self.rounds > 1:
            yield f"--rounds measures the pairwise scores anew; with --by {self.by} leave out --rounds"
        if self.units == "layers":
            return
        if not selector.takes_units:
            others = ", ".join(name for name, one in SELECTORS.items() if one.takes_units)
            yield f"--select {self.select} looks for spans of layers; with --units {self.units} choose {others}"
        elif "tables" in selector.reads and not reads_units:
            yield (
                f"--by {self.by} scores spans of layers; with --units {self.units} choose a score of units such as "
                "relative_update, taylor_unit or left_out_kl"
            )
        if REPAIRS.named(self.repair).needs_layers:
            yield f"--repair {self.repair} is of whole layers; with --units {self.units} use refit, auto or none"
        if self.replace != "none":
            yield f"--replace {self.replace} stands in place of whole layers; with --units {self.units} use none"
        if self.heal is not None and not (self.heal.keep_zeros or self.heal.optional):
            yield (
                "healing trains a stock checkpoint, in which sublayers that are gone are maps of zeros that would grow back; "
                f"with --units {self.units} use --heal none, or heal: keep_zeros: true in a recipe"
            )

    def _conflicts_of_repair(self) -> Iterator[str]:
        states = self.train.objective is not None or bool(self.train.stages)
        if self.polish in POLISH and states:
            yield f"polish {self.polish!r} and train name two objectives; leave out polish, or train.objective and train.stages"
        if self.polish in POLISH and not self.puts_in:
            yield (
                f"polish {self.polish!r} trains what a repair or a replacement put in, and there is neither; "
                "add --repair sweep or --replace layer, or use --polish none"
            )
        if self.heal is not None and self.heal.merge == "apart" and "merge" not in dict(self.heal.unread()):
            yield (
                "heal.merge 'apart' leaves an adapter, and a run ends in a checkpoint; leave it out, or heal what the run made "
                "with shoal heal --merge apart"
            )
        refusal = REPAIRS.named(self.repair).refusal(parse_replacement(self.replace), self._trained_on())
        if refusal:
            yield refusal

    def _trained_on(self) -> TrainedOn:
        """What the training of this recipe compares with the teacher's."""
        trained = self.training()
        needs = frozenset() if trained is None else trained.needs()
        return frozenset({"stream"} if "boundary" in needs else {"logits"} if needs else ())

    def training(self) -> TrainConfig | None:
        """How what the plan put in is trained, with its objective; None where nothing is."""
        if self.train.objective is not None or self.train.stages:
            return None if self.polish == "none" or not self.puts_in else self.train
        polish = self.polish or ("none" if self.replace == "none" else "hidden")
        return None if polish == "none" else self.train.model_copy(update={"objective": POLISH[polish]})

    @property
    def puts_in(self) -> bool:
        """Whether the student holds values that a polish can train: of a replacement, a repair, or merged layers."""
        return self.replace != "none" or self.repair != "none" or self.merges_layers

    @property
    def merges_layers(self) -> bool:
        """Whether its selector proposes merged layers."""
        return not self.is_by_hand and selects_merges(self.select)

    @property
    def is_by_hand(self) -> bool:
        """Whether it is said what becomes of the layers, so that nothing is chosen."""
        return self.layers is not None or self.keep is not None or self.grow is not None

    @property
    def leaves_zeros(self) -> bool:
        """Whether the student is to hold zeros: maps of sublayers that are gone, weights that were pruned."""
        named = () if self.layers is None else parse_units(self.layers, option="--layers")
        return self.prune is not None or self.units != "layers" or any(one.kind != "layer" for one in named)

    def __str__(self) -> str:
        return self.to_yaml()

    def to_yaml(self) -> str:
        """All fields that something reads."""
        from shoal.recipes.unread import unread_keys

        content = self.model_dump(mode="json", exclude=set(CHOOSING) if self.is_by_hand else {"layers", "keep", "grow"})
        for key in unread_keys(self):
            name, _, inner = key.partition(".")
            if inner:
                content[name].pop(inner)
            else:
                content.pop(name, None)
        return yaml.safe_dump(content, sort_keys=False, width=120)

    def protected(self, n_layers: int) -> frozenset[int]:
        """The protected layers as indices 0..L-1."""
        bad = [layer for layer in self.protect if not -n_layers <= layer < n_layers]
        if bad:
            raise ValueError(f"protect={bad[0]} is not a layer of this {n_layers}-layer model (-{n_layers}..{n_layers - 1})")
        return frozenset(layer % n_layers for layer in self.protect)


def _observed(observers: tuple[str, ...]) -> list[str]:
    """The tables that further observers add to a scan."""
    return [table for name in observers for table in OBSERVERS.named(name).tables]
