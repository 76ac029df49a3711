"""Work that can be shared, the same for one process and for a job; ``python shared_work.py FOLDER`` is one process of a job."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from families import VOCAB, tiny_model

from shoal.decoder import DecoderView, Student
from shoal.evaluate.evaluation import closeness
from shoal.evaluate.perplexity import perplexities
from shoal.fit.patch_error import patch_errors
from shoal.scan import CkaObserver, scan
from shoal.score.oracle import Oracle, compare_views
from shoal.select.rounds import rescanner
from shoal.text.samples import Samples
from shoal.types import Provenance, Span, Unit
from shoal.workers import Workers, join

LENGTH = 12
PROVENANCE = Provenance(
    model="tiny", model_hash="m", data="planted", data_hash="d", n_samples=0, n_tokens=0, length=LENGTH, seed=0, dtype="float32"
)


def samples(n, *, seed=0):
    """Padded samples of 4 to 12 tokens, so that every average has to weigh."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, LENGTH + 1, (n,), generator=g)
    ids = torch.randint(3, VOCAB, (n, LENGTH), generator=g) * (torch.arange(LENGTH)[None] < lengths[:, None])
    return Samples(ids, lengths, "calibration", "planted", f"hash-{seed}-{n}", seed)


def students(n_layers):
    return [Student(removed=frozenset({Unit("layer", layer)}), name=str(layer)) for layer in range(n_layers)]


def share_everything(workers: Workers, folder: Path) -> dict[str, object]:
    """What every stage that is shared finds. Five batches, so the shares of two workers differ."""
    view = DecoderView(tiny_model("llama"))
    batches = samples(9).batches(2)
    cka = CkaObserver(view.n_layers, length=LENGTH, n_tokens=8)
    found = scan(view, batches, provenance=PROVENANCE, observers=[cka], workers=workers)
    again = rescanner(view, batches, workers=workers)(students(view.n_layers)[1])
    patched = patch_errors(view, batches, spans=[Span(1, 3), Span(2, 4)], workers=workers)
    quality = Oracle(view, batches, workers=workers).measure(students(view.n_layers))
    other = DecoderView(tiny_model("llama", seed=1))
    ids_T = torch.randint(3, VOCAB, (101,), generator=torch.Generator().manual_seed(3))
    text = perplexities(view, ids_T, window=8, stride=5, students=students(3), batch_size=4, workers=workers)
    near, by_position = closeness(view, students(3)[1], batches, workers=workers)
    single = Oracle(view, batches[:1], workers=workers).measure(students(2))  # one batch: the second worker has nothing to do
    return {
        "tables": {name: (torch.tensor(table.values), torch.tensor(table.stderr)) for name, table in found.tables.items()},
        "anatomy": found.anatomy.model_dump(),
        "provenance": found.provenance.to_json(),
        "rescanned": {name: torch.tensor(table.values) for name, table in again.items()},
        "patched": torch.tensor(patched.values),
        "exact": {
            "quality": [one.to_json() for one in (*quality, *single)],
            "views": compare_views(view, other, batches=batches, workers=workers).to_json(),
            "perplexity": [one.to_json() for one in text],
            "closeness": (near.to_json(), by_position.to_json()),
        },
    }


def run_job(size: int, folder: Path, *, timeout: float = 120.0) -> list[dict[str, object]]:
    """What each process of a job finds, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = Path(__file__).parent
    common = {
        **os.environ,
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    common["PYTHONPATH"] = os.pathsep.join([str(here), *sys.path])
    jobs = [
        subprocess.Popen([sys.executable, __file__, str(folder)], env={**common, "RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(size)
    ]
    try:
        errors = [job.communicate(timeout=timeout)[1].decode() for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    assert all(job.returncode == 0 for job in jobs), "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]


if __name__ == "__main__":
    out = Path(sys.argv[1])
    job = join()
    torch.save(share_everything(job, out), out / f"{job.rank}.pt")
