"""Work that can be shared, the same for one process and for a job; ``python shared_work.py FOLDER`` is one process of a job."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from families import VOCAB, tiny_model

from shoal.edits.replace.layer import LayerReplacement
from shoal.edits.student_of import attach
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.engine.workers import Workers, join
from shoal.evaluate.evaluation import closeness
from shoal.evaluate.perplexity import perplexities
from shoal.fit.fit_job import FitJob
from shoal.fit.linear_error import linear_errors
from shoal.fit.sites.of_layer import Sites
from shoal.fit.sweep import MAPS, sweep_layers
from shoal.measure.cka import CkaObserver
from shoal.measure.oracle import Oracle
from shoal.measure.removals import removal_function
from shoal.measure.scan import scan
from shoal.prune.table import ALLOCATORS, PRUNERS
from shoal.prune.thin import evidence_of, thin, thin_site
from shoal.select.rounds import rescanner
from shoal.text.samples import Samples
from shoal.train.config import TrainConfig
from shoal.train.data_parallel import data_parallel
from shoal.train.joint import Trainees, accumulate
from shoal.train.loop import train_starts
from shoal.train.objectives import weighted_sum
from shoal.train.parts import Start
from shoal.words.records import Provenance
from shoal.words.types import Span, Unit, model_units

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


def removals(view, batches, workers: Workers, folder: Path) -> list[object]:
    """Losses without sets of layers by three kinds of metric, asked twice so that kept states are used, and kept in a file."""
    units = model_units(view.n_layers)
    sets = [[frozenset({unit}) for unit in units], [frozenset(units[1:3]), frozenset(units[3:])]]
    found: list[object] = []
    for metric in ("js", "ce", "lost_cka"):
        v = removal_function(
            view,
            batches,
            units,
            metric=metric,
            folder=folder / f"values-{workers.size}",
            about={"model": "tiny"},
            workers=workers,
        )
        found += [repr(v.values(one)) for one in sets]
        found.append(v.n_evaluations)
    return found


def share_everything(workers: Workers, folder: Path) -> dict[str, object]:
    """What every stage that is shared finds. Five batches, so the shares of two workers differ."""
    view = DecoderView(tiny_model("llama"))
    batches = samples(9).batches(2)
    cka = CkaObserver(view.n_layers, length=LENGTH, n_tokens=8)
    found = scan(view, batches, provenance=PROVENANCE, observers=[cka], workers=workers)
    again = rescanner(view, batches, workers=workers)(students(view.n_layers)[1])
    errors = linear_errors(view, batches, spans=[Span(1, 3), Span(2, 4)], workers=workers)
    quality = Oracle(view, batches, workers=workers).measure(students(view.n_layers))
    other = DecoderView(tiny_model("llama", seed=1))
    ids_T = torch.randint(3, VOCAB, (101,), generator=torch.Generator().manual_seed(3))
    text = perplexities(view, ids_T, window=8, stride=5, students=students(3), batch_size=4, workers=workers)
    near, by_position, _ = closeness(view, students(3)[1], batches, workers=workers)
    # There is one batch, so the second worker has nothing to do.
    single = Oracle(view, batches[:1], workers=workers).measure(students(2))
    trained = train(view, workers, folder)
    swept = sweep(view, workers)
    return {
        "gradients": [gradients(view, n, workers) for n in (5, 1)],
        "trained": trained.values,
        "swept": swept.values,
        "thinned": [
            # The values are text, because a file of tensors holds no classes of ours.
            (one.values, [record.to_json() for record in one.maps])
            for name in PRUNERS
            for one in thinned(view, batches, name, workers)
        ],
        "errors": [(one.error_before, one.error_after) for one in swept.layers],
        "maps": [[(fit.ridge, fit.n_tokens, fit.n_sinks) for fit in one.maps] for one in swept.layers],
        "result": trained.result.model_dump(exclude={"seconds": True, "curve": {"__all__": {"seconds"}}}),
        "tables": {name: (torch.tensor(table.values), torch.tensor(table.stderr)) for name, table in found.tables.items()},
        "anatomy": found.anatomy.model_dump(),
        "provenance": found.provenance.to_json(),
        "rescanned": {name: torch.tensor(table.values) for name, table in again.items()},
        "linear errors": torch.tensor(errors.values),
        "exact": {
            "quality": [one.to_json() for one in (*quality, *single)],
            "removals": removals(view, batches, workers, folder),
            "views": closeness(view, other, batches, workers=workers)[0].to_json(),
            "perplexity": [one.to_json() for one in text],
            "closeness": (near.to_json(), by_position.to_json()),
        },
    }


def thinned(view, batches, name, workers: Workers):
    """All layers with half of their weights; outliers decide where."""
    site = thin_site(view, Student(), batches, workers=workers)
    shares = ALLOCATORS["owl"].divide(evidence_of(site), 0.5, spread=0.1, outlier=2.0)
    return thin(site, PRUNERS[name], shares)


def start(view):
    """A layer in place of two, and a refit of the layer after them."""
    kind = LayerReplacement()
    layer = dict(view.model.model.layers[4].named_parameters())
    refit = {4: {"mlp.down_proj.weight": layer["mlp.down_proj.weight"].detach() * 0.9}}
    return Start(Student(attached=(attach(kind, Span(2, 4), kind.build(view, Span(2, 4))),), overrides=refit))


OBJECTIVE = weighted_sum("hidden_mse+0.5*forward_kl")


def gradients(view, n_samples: int, workers: Workers):
    """Losses and gradients of one step, in pieces of two samples; of ``n_samples=1`` the second worker has none."""
    trainees = Trainees(view, [start(view)], OBJECTIVE)
    every = samples(n_samples, seed=7)
    rows = list(workers.share(range(n_samples))) or [0]
    mine = replace(every, ids_NT=every.ids_NT[rows], lengths_N=every.lengths_N[rows])
    wrapped = data_parallel(trainees, workers, device=view.device)
    losses = accumulate(wrapped, mine.batches(2), OBJECTIVE, of=every.batches(2), workers=workers)
    return losses, {name: one.grad.clone() for name, one in trainees.named_parameters()}


def train(view, workers: Workers, folder: Path):
    """Eight steps of five samples, the last of one; a quality that every worker measures for itself."""
    config = TrainConfig(lr=1e-2, min_lr=1e-3, batch=5, micro_batch=2, eval_every=3, objective=str(OBJECTIVE))
    oracle = Oracle(view, samples(6, seed=5).batches(2), workers=workers)
    (trained,) = train_starts(
        view,
        [start(view)],
        training=samples(36, seed=4),
        selection=samples(6, seed=5),
        config=config,
        folder=folder / f"train-{workers.size}",
        quality=lambda student: oracle.measure([student])[0].kl,
        workers=workers,
    )
    return trained


@dataclass(frozen=True)
class Ended:
    """A process of a job."""

    code: int
    out: str
    err: str
    seconds: float


def launch(size: int, *arguments: str, timeout: float = 120.0) -> list[Ended]:
    """Start Python ``size`` times with the environment of a launcher, and wait for all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = str(Path(__file__).parent)
    common = {
        **os.environ,
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    common["PYTHONPATH"] = os.pathsep.join([here, *sys.path])
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started = time.monotonic()
    jobs = [subprocess.Popen([sys.executable, *arguments], env={**common, "RANK": str(rank)}, **pipes) for rank in range(size)]
    try:
        ended = []
        for job in jobs:
            out, err = job.communicate(timeout=timeout)
            ended.append(Ended(job.returncode, out, err, time.monotonic() - started))
        return ended
    finally:
        for job in jobs:
            job.kill()


def sweep(view, workers: Workers):
    """Refits after two removed layers, with folds that are cut through both workers' batches."""
    cut = Student(removed=frozenset({Unit("layer", 2), Unit("layer", 3)}))
    return sweep_layers(
        FitJob(view, cut, samples(24).batches(5), workers=workers), targets={1: 4, 4: 5, 5: 6}, sites=Sites(MAPS)
    )


def run_job(size: int, folder: Path) -> list[dict[str, object]]:
    """What each process of a job finds, by rank."""
    ended = launch(size, __file__, str(folder))
    assert all(one.code == 0 for one in ended), "\n".join(one.err for one in ended)
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]


if __name__ == "__main__":
    out = Path(sys.argv[1])
    job = join()
    torch.save(share_everything(job, out), out / f"{job.rank}.pt")
