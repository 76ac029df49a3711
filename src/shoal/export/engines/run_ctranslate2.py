"""Run a checkpoint folder in CTranslate2: ``python run_ctranslate2.py REQUEST.json REPLY.npz``, both as in run_transformers.py.

Its own converter writes the model in single precision first; that needs transformers and torch beside it.
"""

import importlib
import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path


def main(request_file: str, reply_file: str) -> None:
    """Answer one request."""
    import numpy as np

    engine, converters = importlib.import_module("ctranslate2"), importlib.import_module("ctranslate2.converters")
    request = json.loads(Path(request_file).read_text())
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        options = {"trust_remote_code": True} if request["trust_remote_code"] else {}
        made = converters.TransformersConverter(request["path"], **options).convert(f"{folder}/model", quantization="float32")
        generator = engine.Generator(made, device="cpu", compute_type="float32", intra_threads=1)

        def logprobs(ids: list[int]) -> np.ndarray:
            return np.array(generator.forward_batch([ids], return_log_probs=True))[0]

        chosen = logprobs(request["ids"])[request["positions"]].astype(np.float32)
        greedy: list[int] = []
        for _ in range(request["n_greedy"]):
            greedy.append(int(logprobs(request["ids"] + greedy)[-1].argmax()))
        said = {"version": importlib.metadata.version("ctranslate2"), "greedy": greedy, "tokens": None}
        np.savez(reply_file, logprobs=chosen, said=json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
