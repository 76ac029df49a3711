"""A recipe: the choice of text, score, selector, guard, repair and training that makes one method. A paper is a recipe.

Recipes are data: typed, validated (unknown key: an error with the nearest), readable as YAML, and complete enough to redo a
run. The named ones below are the papers' own choices where they are stated; where a paper leaves a point open the recipe's
``about`` says what was decided.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from shoal.edits.replace.table import parse_replacement
from shoal.fit.fit_config import FitConfig
from shoal.fit.repair import TrainedOn
from shoal.fit.table import repair_named
from shoal.measure.observers import observer_named
from shoal.select.search.search_config import SearchConfig
from shoal.select.table import selector_named
from shoal.train.config import ON_THE_STREAM, POLISH, TrainConfig, TrainingPhase
from shoal.train.heal.config import HealConfig
from shoal.train.heal.presets import PRESETS
from shoal.words.reading import shortened
from shoal.words.records import Record, nearest
from shoal.words.yaml_text import read_yaml


class TextChoice(Record):
    """Which text, how much of it, and how it is cut into samples.

    Attributes:
        sources: paths, folders, ``hub:NAME`` or mixtures; empty: the bundled sample.
        field: column of the rows that holds the text or the turns of a chat; None: found by its name.
        samples: calibration samples; None: 128 or as many as 32 k tokens fill, fewer where the text holds fewer (at least 8).
        length: tokens per sample; None: the model's window, at most 1024.
        packing: ``packed`` blocks of one length, or one document per ``padded`` sample.
        selection, evaluation: samples of those slices; None: as for ``samples``, up to 64, of 16 k tokens.
    """

    sources: tuple[str, ...] = ()
    field: str | None = Field(default=None, min_length=1)
    samples: int | None = Field(default=None, ge=1)
    length: int | None = Field(default=None, ge=2)
    packing: Literal["packed", "padded"] = "packed"
    selection: int | None = Field(default=None, ge=1)
    evaluation: int | None = Field(default=None, ge=1)


class Recipe(Record):
    """Everything ``shoal run`` needs besides the machine.

    Attributes:
        name, about, papers: for people, the card and the citations (arXiv numbers).
        model: hub id or folder; may come from the command line instead.
        observers: further measures of the scan, names of :data:`shoal.measure.observers.OBSERVERS`; each adds tables to it.
        drop: the budget, as on the command line (``25%``, ``8``, ``25%layers``).
        parameters: the budget as a target size (``6B``); replaces ``drop`` when given.
        select: how layers are chosen, a name of :data:`shoal.select.table.SELECTORS`; ``by``: the table it reads, as
            ``criterion/tokens``.
        search: how a selector that runs the model does so; unused by the others.
        max_spans: most spans of the ``disjoint`` selector.
        rounds: 1 = one-shot; more: cut in that many steps and measure anew after each.
        protect: layers that stay, negative ones counted from the end.
        guard: candidates compared by true KL on the selection slice; 1 = the selector's own choice stands.
        replace: module in place of each removed span, ``NAME`` or ``NAME:option=value,...`` (``none``: plain removal).
        repair: closed form, no new parameters; its name in :data:`shoal.fit.table.REPAIRS`.
        fit: how much text the repair reads and how tokens count; unused with ``repair: none``.
        polish: gradient training of exactly what replacement and repair put in: on ``hidden`` states, on the teacher's logits
            (``kl``), or ``none``. None: as ``train`` says where it names an objective or stages; else ``hidden`` where
            something is put in place of a span, ``none`` where nothing is.
        train: how it is trained; unused where nothing is.
        heal: training of anything else behind all that, into the final checkpoint; None: nothing more is trained.
        speed: whether the evaluation measures how fast teacher and student run.
    """

    name: str = "custom"
    about: str = ""
    papers: tuple[str, ...] = ()
    model: str | None = None
    text: TextChoice = TextChoice()
    observers: tuple[str, ...] = ()
    drop: str = "25%"
    parameters: str | None = None
    select: str = "span"
    search: SearchConfig = SearchConfig()
    by: str = "cosine/rest"
    max_spans: int = Field(default=3, ge=1)
    rounds: int = Field(default=1, ge=1)
    protect: tuple[int, ...] = (0, -1)
    guard: int = Field(default=4, ge=1)
    replace: str = "none"
    repair: str = "auto"
    fit: FitConfig = FitConfig()
    polish: Literal["none", "hidden", "kl"] | None = None
    train: TrainConfig = TrainConfig()
    heal: HealConfig | None = None
    speed: bool = True
    seed: int = Field(default=0, ge=0)

    @field_validator("drop", mode="before")
    @classmethod
    def _drop_as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("observers")
    @classmethod
    def _known_observers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(observer_named(name).name for name in dict.fromkeys(value))

    @field_validator("select")
    @classmethod
    def _known_selector(cls, value: str) -> str:
        selector_named(value)
        return value

    @field_validator("replace")
    @classmethod
    def _known_replacement(cls, value: str) -> str:
        parse_replacement(value)
        return value.strip()

    @field_validator("repair")
    @classmethod
    def _known_repair(cls, value: str) -> str:
        return repair_named(value).name

    @model_validator(mode="after")
    def _something_to_polish(self) -> Recipe:
        states = self.train.objective is not None or bool(self.train.stages)
        if self.polish in ("hidden", "kl") and states:
            raise ValueError(
                f"polish {self.polish!r} and train name two objectives; leave out polish, or train.objective and train.stages"
            )
        if self.polish in ("hidden", "kl") and self.replace == "none" and self.repair == "none":
            raise ValueError(
                f"polish {self.polish!r} trains what a repair or a replacement put in, and there is neither; "
                "add --repair sweep or --replace layer, or use --polish none"
            )
        refusal = repair_named(self.repair).refusal(parse_replacement(self.replace), self._trained_on())
        if refusal:
            raise ValueError(refusal)
        return self

    def _trained_on(self) -> TrainedOn:
        """What the training of this recipe compares with the teacher's."""
        trained = self.training()
        names = "" if trained is None else " ".join(stage.objective for stage in trained.schedule())
        if not names:
            return frozenset()
        return frozenset({"stream" if any(name in names for name in ON_THE_STREAM) else "logits"})

    def training(self) -> TrainConfig | None:
        """How what the plan put in is trained, with its objective; None where nothing is."""
        puts_in = self.replace != "none" or self.repair != "none"
        if self.train.objective is not None or self.train.stages:
            return None if self.polish == "none" or not puts_in else self.train
        polish = self.polish or ("none" if self.replace == "none" else "hidden")
        return None if polish == "none" else self.train.model_copy(update={"objective": POLISH[polish]})

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=120)

    def protected(self, n_layers: int) -> frozenset[int]:
        """The protected layers as indices 0..L-1."""
        bad = [layer for layer in self.protect if not -n_layers <= layer < n_layers]
        if bad:
            raise ValueError(f"protect={bad[0]} is not a layer of this {n_layers}-layer model (-{n_layers}..{n_layers - 1})")
        return frozenset(layer % n_layers for layer in self.protect)


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="default",
            about="The best cuts of every criterion compete, each repaired, by KL; then a closed-form sweep of the layers "
            "around the cut. Forward passes and linear solves only, no new parameters, a stock checkpoint.",
            papers=("2403.19135", "2403.17887"),
        ),
        Recipe(
            name="low",
            about="A fraction of the default's time: two candidates compete, only the layer before each cut is refitted.",
            papers=("2403.19135", "2403.17887"),
            guard=2,
            repair="refit",
            fit=FitConfig(tokens=32_000),
        ),
        Recipe(
            name="high",
            about="As default, and then the layer before each cut is trained whole, with all that the sweep set: two thirds of "
            "the tokens on hidden states, the rest on the teacher's logits (KL). The step with the lowest KL on the text that "
            "decides is kept, the start included.",
            papers=("2403.19135", "2403.17887"),
            replace="layer",
            train=TrainConfig(
                stages=(
                    TrainingPhase(objective="hidden_mse", share=2 / 3, rate=0.5),
                    TrainingPhase(objective="forward_kl", share=1 / 3, rate=0.25),
                )
            ),
        ),
        Recipe(
            name="llm-streamline",
            about="Contiguous span by cosine over every token, one inherited layer trained on hidden states (MSE). "
            "AdamW 2e-4 with the schedule as stated, 62 M tokens; the paper's text is the preset mix:slimpajama.",
            papers=("2403.19135",),
            by="cosine/every",
            protect=(),
            guard=1,
            replace="layer",
            repair="none",
            train=TrainConfig(
                tokens=62_000_000,
                lr=2e-4,
                min_lr=5e-5,
                warmup=0.01,
                weight_decay=1e-3,
                betas=(0.9, 0.999),  # the released MSE path has AdamW's own
                clip=5.0,
                batch=128,
                micro_batch=8,
            ),
        ),
        Recipe(
            name="uidl",
            about="Contiguous span by angular distance of the last token, removed without replacement, then QLoRA beside the "
            "MLPs on 164 M tokens of text at rank 64 and 3e-4, where the paper's own search starts; `shoal heal --preset uidl` "
            "has its ranks and rates per model.",
            papers=("2403.17887",),
            by="angular/last",
            protect=(),
            guard=1,
            replace="none",
            repair="none",
            heal=HealConfig(**PRESETS["uidl"].for_model("")),
        ),
        Recipe(
            name="uidl-simple",
            about="The deepest layers but the last; no text is read to choose them. Healed as uidl.",
            papers=("2403.17887",),
            select="deepest",
            protect=(),
            guard=1,
            replace="none",
            repair="none",
            heal=HealConfig(**PRESETS["uidl"].for_model("")),
        ),
        Recipe(
            name="reassessing",
            about="The deepest layers but the last (the paper removes the last one, too), then the head, the final norm and "
            "the last three layers are trained on text at 1e-5; for models whose head is not tied.",
            papers=("2411.15558",),
            select="deepest",
            protect=(),
            guard=1,
            replace="none",
            repair="none",
            heal=HealConfig(**PRESETS["reassessing"].for_model("")),
        ),
        Recipe(
            name="high-heal",
            about="As high, and then LoRA beside every linear map on the teacher's logits (KL).",
            papers=("2403.19135", "2403.17887"),
            replace="layer",
            train=TrainConfig(
                stages=(
                    TrainingPhase(objective="hidden_mse", share=2 / 3, rate=0.5),
                    TrainingPhase(objective="forward_kl", share=1 / 3, rate=0.25),
                )
            ),
            heal=HealConfig(),
        ),
        Recipe(
            name="streamline-kd",
            about="LLM-Streamline's choice and its inherited layer, both at 1 M tokens; then everything is trained on the "
            "teacher's logits.",
            papers=("2403.19135",),
            by="cosine/every",
            protect=(),
            guard=1,
            replace="layer",
            repair="none",
            heal=HealConfig(method="full"),
        ),
        Recipe(
            name="shortgpt",
            about="The layers of lowest block influence, each on its own, removed without replacement.",
            papers=("2403.03853",),
            select="lowest",
            by="block_influence/every",
            protect=(),
            guard=1,
            replace="none",
            repair="none",
        ),
        Recipe(
            name="sleb",
            about="One layer after the other, each time the one without which the cross-entropy of the text is lowest; removed "
            "without replacement. The first and the last layer stay. The paper reads 128 sequences of WikiText-2; set "
            "search.tokens for as much.",
            papers=("2402.09025",),
            select="greedy",
            search=SearchConfig(metric="ce"),
            guard=1,
            replace="none",
            repair="none",
        ),
        Recipe(
            name="evopress-depth",
            about="Sets of layers whose children swap some, the best by KL live on; removed without replacement. The paper "
            "starts from 64 sets, makes 32 children and selects in steps on ever more text; here it is 16 and 16, all "
            "run on the same text.",
            papers=("2410.14649",),
            select="evolution",
            protect=(),
            guard=1,
            replace="none",
            repair="none",
        ),
        Recipe(
            name="replaceme",
            about="Contiguous span by angular distance of the last token; a least-squares map of the last kept MLP's output, "
            "folded into its weights. Every token counts alike, no ridge, as in the released code; padding is left out here.",
            papers=("2505.02819",),
            by="angular/last",
            protect=(),
            guard=1,
            replace="none",
            repair="map",
            fit=FitConfig(weights="plain", sinks="counted", ridge=0.0, keep="always"),
        ),
        Recipe(
            name="linearpatch",
            about="Contiguous span by cosine, and one scale per Hadamard-rotated channel in its place, the ratio of mean "
            "magnitudes. The paper's training of the scales is not part of this.",
            papers=("2505.24680",),
            by="cosine/every",
            protect=(),
            guard=1,
            replace="hadamard",
            repair="solve",
            polish="none",
            fit=FitConfig(sinks="counted", keep="always", solve="ratio"),
        ),
        Recipe(
            name="ghosted-layers",
            about="Contiguous span by cosine, and the least-squares linear map of the stream in its place.",
            papers=("2605.15491",),
            by="cosine/every",
            protect=(),
            guard=1,
            replace="free",
            repair="solve",
            polish="none",
            fit=FitConfig(weights="plain", sinks="counted", ridge=0.0, keep="always"),
        ),
        Recipe(
            name="prune-comp",
            about="Contiguous span by cosine, and one scale of the stream behind it. The paper drops layers one by one and "
            "compensates and measures anew after each; here the span is chosen at once, and the last layer stays: a scale "
            "before the final norm does nothing.",
            papers=("2507.18212",),
            by="cosine/every",
            protect=(-1,),
            guard=1,
            replace="none",
            repair="magnitude",
            fit=FitConfig(sinks="counted", keep="always"),
        ),
    )
}


def load_recipe(name_or_path: str = "default", changes: Mapping[str, Any] | None = None) -> Recipe:
    """A named recipe, or one read from a YAML file, with changes on top.

    A file may start from a named recipe (``recipe: NAME``) and state only what differs.

    Args:
        changes: fields that differ, nested as in the file: ``{"model": "org/name", "train": {"tokens": 500_000}}``. With
            ``replace`` the recipe's ``repair`` is not used, unless named as well; with ``polish`` neither is its objective.
    Raises:
        ValueError: no such recipe; not YAML; an unknown key or a value out of range (says which, and what is allowed).
    """
    content = RECIPES[name_or_path].model_dump(mode="json") if name_or_path in RECIPES else _read(name_or_path)
    changes = _one_method(changes or {})
    where = "options" if changes else name_or_path
    return Recipe.from_json(json.dumps(merge(content, changes)), where=where)


def with_changes(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """A recipe with other values in some fields, validated as a whole. Raises ValueError as :func:`load_recipe`."""
    if not changes:
        return recipe
    content = merge(recipe.model_dump(mode="json"), _one_method(changes))
    return Recipe.from_json(json.dumps(content), where=f"changes of {recipe.name}")


def _one_method(changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Who names a replacement means it alone: a repair that the recipe would add has to be named, too.

    Who names a polish means it instead of what the recipe trains for.
    """
    changes = {"repair": "none", **changes} if "replace" in changes else changes
    train = changes.get("train") or {}
    if changes.get("polish") is None or not isinstance(train, Mapping):
        return changes
    return {**changes, "train": {"objective": None, "stages": [], **train}}


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _read(name_or_path: str) -> dict[str, Any]:
    path = Path(name_or_path)
    if not _is_there(path):
        raise ValueError(
            f"no recipe {shortened(name_or_path)!r}: neither a file nor a known name; {nearest(name_or_path, RECIPES)}"
        )
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, not the fields of a recipe (key: value lines)")
    base = content.pop("recipe", None)
    if base is None:
        merged = dict(_one_method(content))
    elif isinstance(base, str) and base in RECIPES:
        merged = merge(RECIPES[base].model_dump(mode="json"), _one_method(content))
    else:
        raise ValueError(f"{path}: recipe: {base!r} is unknown; {nearest(str(base), RECIPES)}")
    # checked here as well, so that a fault of the file is not reported as one of the options
    try:
        as_json = json.dumps(merged, default=str)
    except (ValueError, TypeError) as error:  # a value that holds itself, a key that is no text
        raise ValueError(f"{path} cannot be a recipe: {error}") from None
    return Recipe.from_json(as_json, where=str(path)).model_dump(mode="json")


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` on top, nested mappings merged key by key."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged
