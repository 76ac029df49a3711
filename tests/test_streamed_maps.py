"""Mapped tensors of a streamed model: their bits, and that a map and its memory go with the layer."""

import mmap
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import tiny_config, tiny_model
from test_streamed import BATCHES
from transformers import AutoModelForCausalLM

from shoal.engine.shards import Shard, TensorSlot
from shoal.engine.streamed import map_tensor, open_streamed
from shoal.engine.view import DecoderView


def mapped_bytes(folder):
    """Of the files of a folder, in this process."""
    n, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            ours = str(folder) in line
        elif ours and line.startswith("Rss:"):
            n += int(line.split()[1]) * 1024
    return n


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="mapped pages are counted by Linux")
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_a_map_is_gone_with_its_layer(family, tmp_path):
    """The files of a model that was read from end to end: embeddings, the layer in memory and the one ahead are mapped."""
    config = tiny_config(family, n_layers=12)
    config.intermediate_size = 4096
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path, max_shard_size="1MB")
    opened, streamed = open_streamed(tmp_path)
    view = DecoderView(opened.model, residency=streamed)
    stored = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    of_layer = max(sum(slot.n_bytes for _, slot in streamed._places[layer].values()) for layer in range(12))
    outside = stored - 12 * of_layer
    seen = []
    for index in range(12):
        with streamed.layer(index):
            if index + 1 in streamed._ahead:
                streamed._ahead[index + 1].result()
            seen.append(mapped_bytes(tmp_path))
    pages = 3 * mmap.PAGESIZE * len(streamed._places[0])  # A tensor begins and ends inside a page.
    assert max(seen) <= outside + 2 * of_layer + pages and max(seen) >= of_layer
    streamed.settle(())
    assert mapped_bytes(tmp_path) <= outside + pages
    assert torch.isfinite(view.logits(BATCHES[0])).all()


@pytest.mark.parametrize("shift", [0, 1, 2, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_a_mapped_tensor_has_the_bits_of_the_file_wherever_it_lies(dtype, shift, tmp_path):
    content = torch.arange(3000, dtype=torch.uint8).view(torch.uint8)
    value = torch.randint(0, 255, (7, 1024), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).view(dtype)
    raw = value.view(torch.uint8).numpy().tobytes()
    (tmp_path / "file").write_bytes(content[: 100 + shift].numpy().tobytes() + raw)
    kind = {torch.float32: "F32", torch.bfloat16: "BF16", torch.uint8: "U8"}[dtype]
    slot = TensorSlot(kind, tuple(value.shape), shift, shift + len(raw))
    shard = Shard(tmp_path / "file", {"x": slot}, {}, 100)
    found = map_tensor(shard, slot)
    assert torch.equal(found.view(torch.uint8), value.view(torch.uint8))
    found.view(torch.uint8).fill_(0)  # The map is private: the file stays as it is.
    assert (tmp_path / "file").read_bytes().endswith(raw)
    with (tmp_path / "file").open("rb+") as file:
        file.truncate(200)
    with pytest.raises(ValueError, match="ended while it was read"):
        map_tensor(shard, slot)


def test_what_cannot_be_mapped_is_read(tmp_path, monkeypatch):
    tiny_model("llama").save_pretrained(tmp_path)

    def logits():
        opened, streamed = open_streamed(tmp_path)
        return DecoderView(opened.model, residency=streamed).logits(BATCHES[0])

    mapped = logits()

    monkeypatch.setattr("shoal.engine.streamed.private_map", lambda *args: None)
    assert torch.equal(logits(), mapped)


RISE = """
import sys, torch
from pathlib import Path
from shoal.engine.view import DecoderView
from shoal.engine.streamed import open_streamed
from shoal.words.types import Batch

def megabytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmRSS"))

opened, streamed = open_streamed(sys.argv[1])
view = DecoderView(opened.model, residency=streamed)
reading = view.read(Batch(torch.zeros(128, 64, dtype=torch.long)))
h_BTD = reading.h_BTD
with torch.no_grad():
    for layer in range(24):
        h_BTD = view.run_layer(layer, h_BTD, reading)
        before = megabytes() if layer == 3 else before if layer > 3 else None
print(megabytes() - before)
"""


@pytest.mark.slow  # A process of its own; the laws above see every map go.
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about the heap of glibc")
def test_a_layer_that_was_read_leaves_no_memory_behind(tmp_path):
    """In a process of its own, whose heap nothing else has shaped: 20 layers once left 53 MB, three times a batch's work."""
    tiny_model("llama", n_layers=24).save_pretrained(tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", RISE, tmp_path], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert float(ended.stdout) < 20
