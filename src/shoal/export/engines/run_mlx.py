"""Run a checkpoint folder in MLX-LM: ``python run_mlx.py REQUEST.json REPLY.npz``, both as in run_transformers.py."""

import importlib
import importlib.metadata
import json
import sys
from pathlib import Path


def main(request_file: str, reply_file: str) -> None:
    """Answer one request."""
    import numpy as np

    mx, utils = importlib.import_module("mlx.core"), importlib.import_module("mlx_lm.utils")
    request = json.loads(Path(request_file).read_text())
    model, _ = utils.load_model(Path(request["path"]))
    model.set_dtype(mx.float32)

    cache = importlib.import_module("mlx_lm.models.cache").make_prompt_cache(model)

    def logits(ids: list[int]) -> np.ndarray:
        """Of tokens behind those that the cache holds."""
        return np.array(model(mx.array([ids]), cache=cache)[0].astype(mx.float32), dtype=np.float64)

    found = logits(request["ids"])
    chosen = found[request["positions"]]
    chosen -= chosen.max(-1, keepdims=True)
    logprobs = (chosen - np.log(np.exp(chosen).sum(-1, keepdims=True))).astype(np.float32)
    greedy: list[int] = []
    for _ in range(request["n_greedy"]):
        greedy.append(int(found[-1].argmax()))
        found = logits(greedy[-1:])
    said = {"version": importlib.metadata.version("mlx-lm"), "greedy": greedy, "tokens": None}
    np.savez(reply_file, logprobs=logprobs, said=json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
