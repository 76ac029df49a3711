"""A config as a model without weights: what a checkpoint must contain, and whether an edited config still means its layers.

The source's and the student's configs are both built on the ``meta`` device. Student layer ``j`` must then be, module by
module, what source layer ``order[j]`` is: same classes, same parameter names and shapes, same settings (window, rotary choice,
residual scale, ...). This catches every per-layer rule of an architecture that is decided when its layers are built, known to
us or not.
"""

import json
from collections.abc import Sequence
from typing import Any

from torch import nn

from shoal.checkpoint.config_fields import edited_config_dict
from shoal.engine.families import find_layers, refuse_two_stacks, text_config
from shoal.engine.model_config import build_empty
from shoal.words.reading import guarded

# ``layer_idx`` is renumbered, and a layer whose keys nobody reads need not store them; the others are state, not structure.
IGNORED = ("layer_idx", "store_full_length_kv", "training", "gradient_checkpointing")
SETTINGS = (bool, int, float, str, tuple, list, type(None))
MOST_BUILT = 8  # Models are built for so many spans before a family is refused.
IMPLEMENTATIONS = ("_attn_implementation_internal", "_experts_implementation_internal", "_name_or_path", "_commit_hash")


def edited_config(config: Any, order: Sequence[int]) -> Any:
    """A new ``PretrainedConfig`` of the model whose layer ``j`` is layer ``order[j]`` of ``config``'s.

    Raises:
        ValueError: as :func:`shoal.checkpoint.config_fields.edited_config_dict`.
    """
    content = edited_config_dict(config.to_dict(), order)
    with guarded(f"model type {config.model_type!r}: no config of the kept layers {list(order)} can be made"):
        edited = type(config).from_dict(content)
    for old, new in zip(_nested(config), _nested(edited), strict=True):
        for name in IMPLEMENTATIONS:
            if name in vars(old):
                setattr(new, name, vars(old)[name])
    return edited


def _nested(config: Any) -> list[Any]:
    return [config, *(getattr(config, key) for key in sorted(config.sub_configs) if getattr(config, key, None) is not None)]


def check_layers(
    config: Any, order: Sequence[int], *, model_class: Any | None = None, trust_remote_code: bool = False
) -> nn.Module:
    """Refuse an ``order`` whose stock checkpoint would not mean the same layers.

    Args:
        model_class, trust_remote_code: as :func:`shoal.engine.model_config.build_empty`.
    Returns: the blueprint of the student.
    Raises:
        ValueError: the config cannot be edited, or the built layers differ; names the family, the layer and the setting.
    """
    refuse_two_stacks(config)
    how: dict[str, Any] = {"model_class": model_class, "trust_remote_code": trust_remote_code}
    source, student = _built(config, **how), _built(edited_config(config, order), **how)
    theirs, ours = find_layers(source)[1], find_layers(student)[1]
    if len(ours) != len(order):
        raise ValueError(
            f"model type {config.model_type!r}: the edited config builds {len(ours)} layers, {len(order)} are kept"
        )
    for j, layer in enumerate(order):
        difference = first_difference(theirs[layer], ours[j], counts=(len(theirs), len(ours)))
        if difference is not None:
            raise ValueError(
                f"model type {config.model_type!r}: as layer {j} of {len(order)}, layer {layer} would have another "
                f"{difference}; a stock checkpoint cannot describe this cut"
            )
    return student


BUILT: dict[Any, nn.Module] = {}
MOST_REMEMBERED = 4
"""Of the models that were built last: a run asks about its source, and about the student it chose, again and again."""


def _built(config: Any, **how: Any) -> nn.Module:
    """:func:`shoal.engine.model_config.build_empty` of an equal config, built once; for reading only."""
    known = type(config), json.dumps(config.to_dict(), sort_keys=True, default=str), *how.values()
    found = BUILT.pop(known, None)
    BUILT[known] = build_empty(config, **how) if found is None else found
    while len(BUILT) > MOST_REMEMBERED:
        del BUILT[next(iter(BUILT))]
    return BUILT[known]


def check_can_be_cut(config: Any, *, model_class: Any | None = None) -> None:
    """Refuse, before anything is measured, a family that can lose no span of layers at all.

    What a family cannot lose is said of each candidate when it is proposed: one whose kinds of layers alternate in periods can
    lose whole periods, or what stands at the end, and not the layer in the middle.
    Raises:
        ValueError: as :func:`check_layers`, of the middle layer.
    """
    n = text_config(config).num_hidden_layers
    if n < 2:
        return
    content, reason, n_built = config.to_dict(), None, 0
    for start, stop in sorted(spans_that_may_go(n), key=lambda span: (span[1] - span[0], abs(sum(span) - n))):
        kept = [layer for layer in range(n) if not start <= layer < stop]
        try:
            edited_config_dict(content, kept)  # This is fast, and shows most of what a family cannot lose.
            n_built += 1
            check_layers(config, kept, model_class=model_class)
            return
        except ValueError as refusal:
            reason = reason or refusal
        if n_built == MOST_BUILT:
            break
    assert reason is not None
    raise reason


def spans_that_may_go(n_layers: int) -> list[tuple[int, int]]:
    """Spans to ask a family for: every single layer, and of longer ones those of up to 16 layers, the longest period in use."""
    return [(start, start + n) for n in range(1, min(16, n_layers - 1) + 1) for start in range(n_layers - n + 1)]


def first_difference(a: nn.Module, b: nn.Module, *, counts: tuple[int, int] = (0, 0)) -> str | None:
    """Where two layers differ in structure or settings: ``path: this != that``, or None.

    Args:
        counts: layers of the two models; settings named after layers may say these.
    """
    ours, theirs = dict(a.named_modules()), dict(b.named_modules())
    for path in sorted({*ours, *theirs}):
        x, y = ours.get(path), theirs.get(path)
        if type(x) is not type(y):
            return f"{path or 'class'}: {type(x).__name__} != {type(y).__name__}"
        assert x is not None and y is not None
        shapes = [{name: tuple(p.shape) for name, p in m.named_parameters(recurse=False)} for m in (x, y)]
        for name in sorted({*shapes[0], *shapes[1]}):
            if shapes[0].get(name) != shapes[1].get(name):
                return f"{path}.{name}: shape {shapes[0].get(name)} != {shapes[1].get(name)}"
        for name in sorted({*vars(x), *vars(y)}):
            if name.startswith("_") or name in IGNORED:
                continue
            v, w = vars(x).get(name), vars(y).get(name)
            if isinstance(v, SETTINGS) and isinstance(w, SETTINGS) and v != w and not ("layers" in name and (v, w) == counts):
                return f"{path}.{name}".strip(".") + f": {v!r} != {w!r}"
    return None


def refuse_other_tensors(model: nn.Module, plan: nn.Module, where: str) -> None:
    """Raises ValueError when a model's parameters and buffers are not, by name and shape, those of its blueprint."""
    has, needs = ({name: tuple(t.shape) for name, t in m.state_dict().items()} for m in (model, plan))
    for name in sorted({*has, *needs}):
        if has.get(name) != needs.get(name):
            raise ValueError(f"{where}: tensor {name!r} has shape {has.get(name)}, its config asks for {needs.get(name)}")
