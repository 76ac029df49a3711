"""Code that comes with a checkpoint: modules attached inside the layers before them, by subclasses of the stock classes.

Stock parameter names stay, cache indices stay contiguous, the stock attention is untouched. Two files, a config and a modelling
file with relative imports only, so that ``trust_remote_code=True`` loads it without Shoal; without it transformers refuses. The
modelling file holds ``shoal.edits.replace.modules`` as it stands, and behind it the classes of modules that stand elsewhere:
what was trained is what is shipped.
"""

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from shoal.edits.replace import modules
from shoal.edits.replace.modules import HOSTED, StreamModule
from shoal.engine.shards import INDEX, SINGLE
from shoal.words.reading import read_json
from shoal.words.records import stable_hash

CONFIG_FILE, MODEL_FILE = "configuration_shoal", "modeling_shoal"
FIRST, WEIGHTS = "model-00001-of-00002.safetensors", "model-replacements.safetensors"

CONFIG_CODE = '''"""The config of {stock}, and which replacements of removed layers follow which layer. Written by Shoal."""

from {module} import {config}


class Shoal{config}({config}):
    """As {config}. ``replacements``: layer index -> kinds and options of what follows that layer, in order."""

    model_type = "{model_type}"


# Of {model_file}.py with the digest {digest}.
'''

MODEL_CODE = """

# -- the model -------------------------------------------------------------------------------------------------------------

from {module} import {names}  # noqa: E402

from .{config_file} import Shoal{config}  # noqa: E402
"""

STORED_AS_CODE = """
from transformers import conversion_mapping  # noqa: E402

# Weights are stored as those of {family} are: experts one by one, or under names of earlier versions.
for _stock, _ours in {stored_as}.items():
    _mapping = conversion_mapping.get_checkpoint_conversion_mapping(_stock)
    if _mapping is not None:
        conversion_mapping.register_checkpoint_conversion_mapping(_ours, _mapping, overwrite=True)
"""

CLASS_CODE = '''

class Shoal{stock}({stock}):
    """{stock} whose layers are followed by the replacements its config names."""

    config_class = Shoal{config}

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        hidden_size = config.get_text_config(decoder=True).hidden_size
        host(self.get_submodule("{layers_path}"), config.replacements, hidden_size)
'''


def refuse_no_bundle(model: nn.Module) -> None:
    """Raises ValueError for a model whose classes are not transformers' own, so that its code would have to come along."""
    if not type(model).__module__.startswith("transformers.models."):
        raise ValueError(
            f"{type(model).__name__} comes with its own code, which a replacement cannot be attached to; use --replace layer, "
            "or the layout stock where the replacement has one"
        )


def bundle(folder: Path, model: Any, layers_path: str, hosted: Mapping[int, Sequence[StreamModule]]) -> None:
    """Turn a stock checkpoint folder into one whose layers are followed by modules.

    Args:
        model: any model of the checkpoint's class; its weights are not read.
        layers_path: of its layer list.
        hosted: modules by the index of the layer they follow.
    """
    tensors = {
        f"{layers_path}.{index}.{HOSTED}.{i}.{name}": value.detach().contiguous().cpu()
        for index, modules in hosted.items()
        for i, module in enumerate(modules)
        for name, value in module.state_dict().items()
    }
    _add_weights(folder, tensors)
    kinds = dict.fromkeys(type(module) for modules in hosted.values() for module in modules)
    _write_code(folder, model, layers_path, kinds)
    config = read_json(folder / "config.json")
    config.update(
        model_type=_model_type(model),
        architectures=[f"Shoal{type(model).__name__}"],
        auto_map=_auto_map(model, layers_path),
        replacements={
            str(index): [{"kind": module.kind, "options": module.options} for module in modules]
            for index, modules in sorted(hosted.items())
        },
    )
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _add_weights(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """A shard of their own; a checkpoint in one file becomes one with an index."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    save_file(dict(tensors), str(folder / WEIGHTS), metadata={"format": "pt"})
    n_bytes = sum(value.numel() * value.element_size() for value in tensors.values())
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX)
    else:
        with safe_open(str(folder / SINGLE), framework="pt") as file:
            names = list(file.keys())
        n_single = (folder / SINGLE).stat().st_size
        (folder / SINGLE).rename(folder / FIRST)
        index = {"metadata": {"total_size": n_single}, "weight_map": dict.fromkeys(names, FIRST)}
    index["metadata"]["total_size"] += n_bytes
    index["weight_map"].update(dict.fromkeys(tensors, WEIGHTS))
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_code(folder: Path, model: Any, layers_path: str, kinds: Iterable[type[StreamModule]]) -> None:
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    stock, config, family = type(model).__name__, type(model.config).__name__, model.config.model_type
    words = {"stock": stock, "config": config, "family": family, "model_type": _model_type(model), "config_file": CONFIG_FILE}
    inner = _inner(model, layers_path)
    names = sorted({stock, *([inner[0]] if inner else [])})
    text = Path(modules.__file__).read_text(encoding="utf-8")
    text += "".join(f"\n\n{inspect.getsource(kind)}" for kind in kinds if kind.__module__ != modules.__name__)
    text += MODEL_CODE.format(module=type(model).__module__, names=", ".join(names), **words)
    stored_as = {family: _model_type(model), **{name: f"Shoal{name}" for name in names}}
    if any(get_checkpoint_conversion_mapping(one) is not None for one in stored_as):
        text += STORED_AS_CODE.format(stored_as=stored_as, **words)
    text += CLASS_CODE.format(layers_path=layers_path, **words)
    if inner:
        text += CLASS_CODE.format(layers_path=inner[1], **{**words, "stock": inner[0]})
    (folder / f"{MODEL_FILE}.py").write_text(text, encoding="utf-8")
    # The library finds a model's class by its config's class and loads equal files once, so a config file that two checkpoints
    # share would give the second one in a process the model of the first.
    code = CONFIG_CODE.format(module=type(model.config).__module__, digest=stable_hash(text), model_file=MODEL_FILE, **words)
    (folder / f"{CONFIG_FILE}.py").write_text(code, encoding="utf-8")


def _auto_map(model: Any, layers_path: str) -> dict[str, str]:
    found = {
        "AutoConfig": f"{CONFIG_FILE}.Shoal{type(model.config).__name__}",
        "AutoModelForCausalLM": f"{MODEL_FILE}.Shoal{type(model).__name__}",
    }
    inner = _inner(model, layers_path)
    return {**found, "AutoModel": f"{MODEL_FILE}.Shoal{inner[0]}"} if inner else found


def _inner(model: Any, layers_path: str) -> tuple[str, str] | None:
    """Class name of the model without its head, and the path of the layers inside it; engines build on that one."""
    prefix = model.base_model_prefix + "."
    inner = getattr(model, model.base_model_prefix, None)
    if inner is None or not layers_path.startswith(prefix) or type(inner).__module__ != type(model).__module__:
        return None
    return type(inner).__name__, layers_path.removeprefix(prefix)


def _model_type(model: Any) -> str:
    return f"shoal_{model.config.model_type}"
