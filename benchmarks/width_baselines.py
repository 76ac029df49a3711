"""Two structured width methods to compare with, for Llama-like models; not part of the product.

SliceGPT (arXiv 2401.15024): at every point of the residual stream a basis of principal components, the stream keeps the first
d'. Keeping them in that basis is the same as projecting the stream where it stands, with the root mean square over the d of
the source: so it is computed here, by layers that project, and the parameters are those that the sliced model would have. Bases
are found front to back on the already sliced prefix. The mean of the embedding is left alone (the released program subtracts it
for RMSNorm models too, which moves their logits), and the last point is not sliced.

LLM-Pruner (arXiv 2305.11627): what has the least sum |w g| goes, of head groups (queries, keys, values and columns of the
output map) and of neurons (rows of gate and up, a column of down), an equal share in every layer but the first ones and the
last. A group whose columns of the output map are zero is gone, so it is computed by those zeros.

Shapes: B samples, T positions, N tokens, D hidden size, F neurons.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.measure.divergence import predicts
from shoal.words.types import Batch

FIRST, LAST = 1 / 8, 1 / 16
"""Parts of the layers that LLM-Pruner leaves whole in front and behind: 4 and 2 of 32."""


# -- SliceGPT ------------------------------------------------------------------------------------------------------------


def projecting_layer(layer: Any, middle_DD: Tensor | None, after_DD: Tensor | None) -> None:
    """Let a layer project the stream behind its attention and behind its MLP; None: it does not."""

    def forward(hidden_states: Tensor, **kwargs: Any) -> Tensor:
        h = hidden_states + layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)[0]
        h = h if middle_DD is None else h @ middle_DD
        h = h + layer.mlp(layer.post_attention_layernorm(h))
        return h if after_DD is None else h @ after_DD

    layer.forward = forward


@torch.no_grad()
def sliced(model: Any, batches: Sequence[Batch], kept: int) -> Any:
    """A copy of a Llama-like model that keeps ``kept`` directions of the stream at every point but the last."""
    result = copy.deepcopy(model)
    view = DecoderView(result)
    readings = [view.read(batch) for batch in batches]
    states = [reading.h_BTD for reading in readings]
    first_DD = projector(_real(states, batches), kept)
    result.model.embed_tokens.register_forward_hook(lambda module, args, output: output @ first_DD)
    states = [h_BTD @ first_DD for h_BTD in states]
    layers = list(result.model.layers)
    for index, layer in enumerate(layers):
        is_last = index == len(layers) - 1
        middles = []
        for h_BTD, reading in zip(states, readings, strict=True):
            inside = layer.self_attn(hidden_states=layer.input_layernorm(h_BTD), **reading.calls[index].kwargs)[0]
            middles.append(h_BTD + inside)
        middle_DD = projector(_real(middles, batches), kept)
        afters = []
        for h_BTD in middles:
            h_BTD = h_BTD @ middle_DD
            afters.append(h_BTD + layer.mlp(layer.post_attention_layernorm(h_BTD)))
        after_DD = None if is_last else projector(_real(afters, batches), kept)
        states = afters if after_DD is None else [h_BTD @ after_DD for h_BTD in afters]
        projecting_layer(layer, middle_DD, after_DD)
    return result


def projector(tokens_ND: Tensor, kept: int) -> Tensor:
    """(D, D) onto the first principal directions of the second moments, mean included; the identity where all are kept."""
    if kept == tokens_ND.shape[1]:
        return torch.eye(kept, dtype=tokens_ND.dtype)
    tokens = tokens_ND.double()
    directions_DK = torch.linalg.eigh(tokens.mT @ tokens).eigenvectors[:, -kept:]
    return (directions_DK @ directions_DK.mT).to(tokens_ND.dtype)


def sliced_parameters(config: Any, kept: int) -> int:
    """What the sliced model would hold: narrower readers and writers, two shortcuts in every layer, a head of its own."""
    width, ffn, n = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    size = getattr(config, "head_dim", None) or width // config.num_attention_heads
    heads = size * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    layer = kept * (heads + 3 * ffn) + 2 * kept * kept
    last = (width - kept) * (ffn + kept)  # The last down map and shortcut write all of the stream.
    return n * layer + last + config.vocab_size * (kept + width)


def width_for(config: Any, parameters: int) -> int:
    """The largest number of directions with at most that many parameters.

    Raises:
        ValueError: none has so few.
    """
    found = [kept for kept in range(8, config.hidden_size + 1) if sliced_parameters(config, kept) <= parameters]
    if not found:
        raise ValueError(f"no slicing of this model has at most {parameters:,} parameters")
    return max(found)


def _real(states: Sequence[Tensor], batches: Sequence[Batch]) -> Tensor:
    return torch.cat([
        h_BTD.flatten(0, 1) if batch.mask_BT is None else h_BTD[batch.mask_BT.bool()]
        for h_BTD, batch in zip(states, batches, strict=True)
    ])  # fmt: skip


# -- LLM-Pruner ----------------------------------------------------------------------------------------------------------


def taylor_groups(model: Any, batches: Sequence[Batch], share: float) -> tuple[Student, int]:
    """An overlay without the least important groups and neurons, and the parameters that they were.

    Args:
        share: of the neurons and of the head groups of every layer that is pruned, rounded to whole ones.
    """
    config, layers = model.config, model.model.layers
    gradients_of(model, batches)
    overrides: dict[int, dict[str, Tensor]] = {}
    gone = 0
    for index in pruned_layers(len(layers)):
        layer = layers[index]
        overrides[index] = {}
        for name, groups_GD, per_unit in _units(layer, config):
            n = round(share * len(groups_GD))
            lowest = groups_GD.argsort(stable=True)[:n]
            weight = layer.get_submodule(name).weight.detach().clone()
            columns = weight.view(len(weight), len(groups_GD), -1)
            columns[:, lowest] = 0.0
            overrides[index][f"{name}.weight"] = weight
            gone += n * per_unit
    model.zero_grad(set_to_none=True)
    return Student(overrides=overrides, name="taylor groups"), gone


def pruned_layers(n: int) -> range:
    """Those that are not left whole."""
    return range(max(1, round(n * FIRST)), n - max(1, round(n * LAST)))


def gradients_of(model: Any, batches: Sequence[Batch]) -> None:
    """Gradients of the text's mean loss, in the parameters."""
    model.zero_grad(set_to_none=True)
    n = sum(int(predicts(batch.ids_BT, batch.mask_BT).sum()) for batch in batches)
    for batch in batches:
        counted_BT = predicts(batch.ids_BT, batch.mask_BT)
        mask = None if batch.mask_BT is None else batch.mask_BT.long()
        logits_BTV = model(input_ids=batch.ids_BT, attention_mask=mask, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits_BTV[counted_BT], batch.ids_BT[:, 1:][counted_BT], reduction="sum") / n
        loss.backward()


def _units(layer: Any, config: Any) -> Iterator[tuple[str, Tensor, int]]:
    """Output map, importance of each unit that writes through it, and parameters of a unit."""
    attention, mlp = layer.self_attn, layer.mlp
    n_groups = config.num_key_value_heads
    rows = [
        _taylor(one.weight).sum(1).view(n_groups, -1).sum(1) for one in (attention.q_proj, attention.k_proj, attention.v_proj)
    ]
    columns = _taylor(attention.o_proj.weight).sum(0).view(n_groups, -1).sum(1)
    size = sum(one.weight.numel() for one in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj))
    yield "self_attn.o_proj", columns + sum(rows), size // n_groups
    neurons = _taylor(mlp.gate_proj.weight).sum(1) + _taylor(mlp.up_proj.weight).sum(1) + _taylor(mlp.down_proj.weight).sum(0)
    yield "mlp.down_proj", neurons, 3 * mlp.gate_proj.weight.shape[1]


def _taylor(weight: Tensor) -> Tensor:
    """|w g|, entry by entry."""
    assert weight.grad is not None
    return (weight.detach() * weight.grad).abs()
