"""Run a GGUF file in OpenVINO GenAI: ``python run_openvino.py REQUEST.json REPLY.npz``, both as in run_transformers.py.

The pipeline reads the file and saves what it made of it; that graph is then asked for its logits, in single precision.
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

    genai, openvino = importlib.import_module("openvino_genai"), importlib.import_module("openvino")
    request = json.loads(Path(request_file).read_text())
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        file = Path(folder) / "model.gguf"
        file.symlink_to(request["path"])
        genai.LLMPipeline(str(file), "CPU", enable_save_ov_model=True)
        graph = openvino.Core().compile_model(f"{folder}/openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        names = {port.any_name for port in graph.inputs}

        def logits(ids: list[int]) -> np.ndarray:
            n = len(ids)
            whole = {
                "input_ids": np.array([ids], dtype=np.int64),
                "attention_mask": np.ones((1, n), dtype=np.int64),
                "position_ids": np.arange(n, dtype=np.int64)[None],
                "beam_idx": np.zeros(1, dtype=np.int32),
            }
            asked = graph.create_infer_request()  # The request begins with an empty cache.
            asked.infer({name: value for name, value in whole.items() if name in names})
            return np.array(asked.get_tensor("logits").data, dtype=np.float64)[0]

        chosen = logits(request["ids"])[request["positions"]]
        chosen -= chosen.max(-1, keepdims=True)
        logprobs = (chosen - np.log(np.exp(chosen).sum(-1, keepdims=True))).astype(np.float32)
        greedy: list[int] = []
        for _ in range(request["n_greedy"]):
            greedy.append(int(logits(request["ids"] + greedy)[-1].argmax()))
        said = {"version": importlib.metadata.version("openvino-genai"), "greedy": greedy, "tokens": None}
        np.savez(reply_file, logprobs=logprobs, said=json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
