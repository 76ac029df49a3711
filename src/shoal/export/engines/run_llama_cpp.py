"""Run a GGUF file in llama.cpp, in the process of the xllamacpp package: ``python run_llama_cpp.py REQUEST.json REPLY.npz``.

Request and reply as in run_transformers.py. A distribution is that of one generated token with as many candidates as there are
tokens; where the most likely token ends the text the engine lists none, and the row is not a number. The cache of keys and
values is in single precision and attention is not fused: in half precision, or fused, which are the engine's own choices,
log-probabilities of a file in single precision move by 5e-3 and KL by 1e-6, where 2e-5 and less than 1e-7 are left so.
"""

import importlib
import importlib.metadata
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any


def main(request_file: str, reply_file: str) -> None:
    """Answer one request."""
    import numpy as np

    engine = importlib.import_module("xllamacpp")
    request = json.loads(Path(request_file).read_text())
    ids, n_vocab = request["ids"], request["n_vocab"]
    settings = engine.CommonParams()
    settings.model.path = request["path"]
    settings.n_ctx = len(ids) + request["n_greedy"] + 64
    settings.n_parallel = 1
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.cache_type_k = settings.cache_type_v = engine.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = engine.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.warmup, settings.verbosity, settings.fit_params = False, 0, False
    server = engine.Server(settings)
    logprobs = np.full((len(request["positions"]), n_vocab), -np.inf, dtype=np.float32)
    for row, position in enumerate(request["positions"]):
        asked = {"prompt": ids[: position + 1], "n_predict": 1, "temperature": 0, "n_probs": n_vocab, "cache_prompt": True}
        found = candidates(server.handle_completions(asked))
        if not found:
            logprobs[row] = np.nan
        for one in found:
            logprobs[row, one["id"]] = one["logprob"]
    greedy: list[int] = []
    for _ in range(request["n_greedy"]):
        asked = {"prompt": ids + greedy, "n_predict": 1, "temperature": 0, "n_probs": 1, "cache_prompt": True}
        found = candidates(server.handle_completions(asked))
        if not found:
            break
        greedy.append(found[0]["id"])
    tokens = [tokenised(server.listening_address, text) for text in request["texts"]] if request["texts"] else None
    said = {"version": importlib.metadata.version("xllamacpp"), "greedy": greedy, "tokens": tokens}
    np.savez(reply_file, logprobs=logprobs, said=json.dumps(said))


def candidates(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The candidates of one generated token, best first; none where the token ends the text, which is not listed."""
    if "choices" not in answer:
        raise ValueError(f"llama.cpp answers: {answer}")
    content = (answer["choices"][0]["logprobs"] or {}).get("content") or []
    return content[0]["top_logprobs"] if content else []


def tokenised(address: str, text: str) -> list[int]:
    """A text as token ids, without start and end tokens."""
    body = json.dumps({"content": text, "add_special": False, "parse_special": False}).encode()
    asked = urllib.request.Request(f"{address}/tokenize", body, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # The address is on this machine.
    with opener.open(asked, timeout=60) as answer:
        return list(json.loads(answer.read())["tokens"])


if __name__ == "__main__":
    main(*sys.argv[1:])
