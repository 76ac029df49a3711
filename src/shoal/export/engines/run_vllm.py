"""Run a checkpoint folder in vLLM on a CPU: ``python run_vllm.py REQUEST.json REPLY.npz``, both as in run_transformers.py."""

import importlib
import importlib.metadata
import json
import os
import sys
from pathlib import Path

# One process on one thread: bound to cores that others use, the engine's threads wait for each other.
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


def main(request_file: str, reply_file: str) -> None:
    """Answer one request."""
    os.environ.update(SETTINGS)
    import numpy as np

    engine = importlib.import_module("vllm")
    request = json.loads(Path(request_file).read_text())
    ids, n_vocab = request["ids"], request["n_vocab"]
    model = engine.LLM(
        request["path"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=len(ids) + request["n_greedy"] + 1,
        max_logprobs=-1,
        skip_tokenizer_init=True,
        trust_remote_code=request["trust_remote_code"],
    )
    plain = {"temperature": 0.0, "detokenize": False, "ignore_eos": True}
    all_of_them = engine.SamplingParams(max_tokens=1, prompt_logprobs=-1, flat_logprobs=True, **plain)
    # One token more, because the distribution at a position is given with the token behind it.
    listed = model.generate({"prompt_token_ids": [*ids, 0]}, all_of_them, use_tqdm=False)[0].prompt_logprobs
    logprobs = np.full((len(request["positions"]), n_vocab), -np.inf, dtype=np.float32)
    for row, position in enumerate(request["positions"]):
        start, stop = listed.start_indices[position + 1], listed.end_indices[position + 1]
        logprobs[row, listed.token_ids[start:stop]] = listed.logprobs[start:stop]
    on = engine.SamplingParams(max_tokens=request["n_greedy"], **plain)
    greedy = list(model.generate({"prompt_token_ids": ids}, on, use_tqdm=False)[0].outputs[0].token_ids)
    said = {"version": importlib.metadata.version(package()), "greedy": greedy, "tokens": None}
    np.savez(reply_file, logprobs=logprobs, said=json.dumps(said))


def package() -> str:
    """The distribution that holds the engine here."""
    return importlib.metadata.packages_distributions()["vllm"][0]


if __name__ == "__main__":
    main(*sys.argv[1:])
