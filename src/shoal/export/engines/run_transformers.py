"""Run a checkpoint folder or a GGUF file in transformers: ``python run_transformers.py REQUEST.json REPLY.npz``.

The request: ``path``, ``ids`` (T token ids, or None: the first of ``text``), ``positions`` whose next-token distributions are
wanted, ``n_greedy`` tokens to go on with, ``texts`` to tokenise. The reply: ``logprobs`` (positions, vocabulary) and ``said``,
which is JSON. ``trust_remote_code``: code in the folder may run. Works with versions 4 and 5.
"""

import json
import sys
from pathlib import Path
from typing import Any

# Without any of them some families get a tokenizer that knows no text.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def main(request_file: str, reply_file: str) -> None:
    """Answer one request."""
    import numpy as np
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    request = json.loads(Path(request_file).read_text())
    path = Path(request["path"])
    options: dict[str, Any] = {"trust_remote_code": request["trust_remote_code"]}
    if path.is_file():
        options["gguf_file"] = path.name
    where, packed = str(path.parent if path.is_file() else path), {}
    if path.is_file() and hasattr(transformers, "GgufConfig"):
        packed["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = auto_class(path).from_pretrained(where, torch_dtype=torch.float32, **options, **packed).eval()
    tokenizer = None
    has_files = path.is_file() or any((path / name).exists() for name in TOKENIZER_FILES)
    try:
        tokenizer = None if not has_files else transformers.AutoTokenizer.from_pretrained(where, **options)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # A model without a tokenizer is compared on token ids alone.
    ids = request["ids"] or first_ids(tokenizer, request, model.config)
    positions = [position for position in request["positions"] if position < len(ids)]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0][positions]
        logprobs = torch.log_softmax(logits.double(), -1).float().numpy()
        greedy: list[int] = []
        for _ in range(request["n_greedy"]):
            greedy.append(int(model(input_ids=torch.tensor([ids + greedy]), use_cache=False).logits[0, -1].argmax()))
    texts = request["texts"]
    tokens = None if tokenizer is None or not texts else [tokenizer.encode(one, add_special_tokens=False) for one in texts]
    said = {"version": transformers.__version__, "greedy": greedy, "tokens": tokens, "ids": ids}
    np.savez(reply_file, logprobs=logprobs, said=json.dumps(said))


def auto_class(path: Path) -> Any:
    """The class that opens a checkpoint: transformers has no causal model of some that wrap a text decoder for images."""
    import transformers
    from transformers.models.auto import modeling_auto as known

    family = None if path.is_file() else json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type")
    is_wrapper = family not in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and (
        family in known.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    )
    return transformers.AutoModelForImageTextToText if is_wrapper else transformers.AutoModelForCausalLM


def first_ids(tokenizer: Any, request: dict[str, Any], config: Any) -> list[int]:
    """The first tokens of a text; without a tokenizer any ids that are far apart. What is generated fits the window, too."""
    config = config.get_text_config(decoder=True)
    window = getattr(config, "max_position_embeddings", None) or request["n_tokens"] + request["n_greedy"] + 1
    n_tokens = max(2, min(request["n_tokens"], window - request["n_greedy"] - 1))
    if tokenizer is None:
        return [(7919 * i + 3) % config.vocab_size for i in range(n_tokens)]
    return list(tokenizer.encode(request["text"])[:n_tokens])


if __name__ == "__main__":
    main(*sys.argv[1:])
