"""Run a checkpoint folder in ONNX Runtime GenAI: ``python run_onnxruntime_genai.py REQUEST.json REPLY.npz``.

Request and reply as in run_transformers.py. Its own model builder writes the graph in single precision first; that needs
transformers and torch beside it.
"""

import importlib
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from pathlib import Path


def main(request_file: str, reply_file: str) -> None:
    """Answer one request."""
    import numpy as np

    engine = importlib.import_module("onnxruntime_genai")
    request = json.loads(Path(request_file).read_text())
    ids = request["ids"]
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        build = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "fp32", "-e", "cpu"]
        subprocess.run([*build, "-i", request["path"], "-o", f"{folder}/model", "-c", f"{folder}/cache"], check=True)
        model = engine.Model(f"{folder}/model")
        settings = engine.GeneratorParams(model)
        settings.set_search_options(max_length=len(ids) + request["n_greedy"] + 1, do_sample=False)
        generator = engine.Generator(model, settings)
        generator.append_tokens(np.array([ids], dtype=np.int32))
        logits = np.array(generator.get_output("logits"), dtype=np.float64)[0]
        chosen = logits[request["positions"]]
        chosen -= chosen.max(-1, keepdims=True)
        greedy: list[int] = []
        for _ in range(request["n_greedy"]):
            token = int(np.array(generator.get_logits()).reshape(-1).argmax())
            greedy.append(token)
            generator.append_tokens(np.array([[token]], dtype=np.int32))
        said = {"version": importlib.metadata.version("onnxruntime-genai"), "greedy": greedy, "tokens": None}
        logprobs = (chosen - np.log(np.exp(chosen).sum(-1, keepdims=True))).astype(np.float32)
        np.savez(reply_file, logprobs=logprobs, said=json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
