"""QLoRA: LoRA beside weights in 4 bits (NF4, double quantisation, bf16 arithmetic), by bitsandbytes; runs on CPUs, too, and
multiplies in float32 on those that are slow at bf16.

Source: arXiv 2305.14314, whose configuration this is. UIDL (arXiv 2403.17887) heals so, and states no more than "4-bit QLoRA".
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from shoal.engine.open import load_strictly, quiet_loading
from shoal.engine.opening import Opening
from shoal.engine.wide_products import widen


def open_in_4_bits(path: Path, opening: Opening = Opening(), *, instead: str = "--method lora") -> Any:
    """The checkpoint with the linear maps of its layers in 4 bits; embeddings, norms and head keep their dtype.

    Args:
        instead: what to ask for where that cannot be.
    Raises:
        ImportError: bitsandbytes is not installed.
        ValueError: it cannot quantise this model.
    """
    _need_bitsandbytes()
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    with quiet_loading():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                str(path),
                quantization_config=how,
                device_map={"": opening.device},
                dtype="auto",
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=opening.trust,
            )
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{path} cannot be opened in 4 bits: {type(error).__name__}: {reason}. Use {instead}") from None
    if opening.device.startswith("cpu"):
        _refuse_narrow(model, instead=instead)
        _keep_differentiable(model)
        widen(model)
    return model.eval()


def _keep_differentiable(model: nn.Module) -> None:
    """Keep the 4-bit maps in the layout whose product has a gradient.

    On processors with AVX512-BF16 bitsandbytes 0.50 packs a map for its inference kernel at the first forward in eval mode, and
    never back: that kernel has no gradient, so what is trained in front of the map would learn from the adapters' paths alone.
    """
    maps: list[Any] = [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    for module in maps:
        module.support_avx512bf16_for_cpu = False


def _refuse_narrow(model: Any, *, instead: str) -> None:
    """Raises ValueError for maps whose rows are no whole blocks of 4-bit numbers: the product on a CPU cannot read them."""
    for name, module in model.named_modules():
        weight: Any = getattr(module, "weight", None)
        if getattr(weight, "quant_state", None) is not None and weight.quant_state.shape[1] % weight.quant_state.blocksize:
            raise ValueError(
                f"4 bits on a CPU need maps with a multiple of {weight.quant_state.blocksize} inputs; {name} has "
                f"{weight.quant_state.shape[1]}. Use {instead}, or --device cuda"
            )


@torch.no_grad()
def out_of_4_bits(path: Path, opening: Opening = Opening()) -> Any:
    """The checkpoint with the numbers that its 4-bit form stands for, in the checkpoint's own dtype."""
    from bitsandbytes.functional import dequantize_4bit

    # Quantised anew, which gives the same bits: the first forward may have packed the weights of a trained model otherwise.
    quantised = open_in_4_bits(path, opening)
    model = load_strictly(path, trust_remote_code=opening.trust)
    for name, module in quantised.named_modules():
        weight: Any = getattr(module, "weight", None)
        if getattr(weight, "quant_state", None) is not None:
            plain = model.get_submodule(name).weight
            plain.copy_(dequantize_4bit(weight.data, weight.quant_state).reshape(plain.shape))
    return model


def n_parameters_of(model: Any) -> int:
    """Parameters of a model, tied ones once; packed ones count as the numbers they stand for."""
    return sum(_size(parameter) for parameter in model.parameters())


def _size(parameter: nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(torch.Size(state.shape).numel())


def _need_bitsandbytes() -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise ImportError("weights in 4 bits need bitsandbytes; install it with: pip install 'shoal[heal]'") from None
