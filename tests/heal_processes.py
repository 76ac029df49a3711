"""One process of a job that heals: ``python heal_processes.py FOLDER METHOD PROCESSES``."""

import json
import sys
from pathlib import Path

import torch
from heal_world import config, world

from shoal.engine.workers import join
from shoal.train.heal.merge import trained_values
from shoal.train.heal.train import prepare, train


def heal_here(folder: Path, method: str, processes: str):
    """The curve of a healing, and the values it ends with."""
    student, lesson = world()
    asked = config(method=method, processes=processes, micro_batch=2, batch=4, tokens=192, lr=1e-3)
    pupil = prepare(student, asked, lesson)
    done = train(pupil, asked, lesson, folder)
    return [point.model_dump() for point in done.curve], trained_values(pupil.model)


if __name__ == "__main__":
    out, (method, processes) = Path(sys.argv[1]), sys.argv[2:]
    job = join()
    curve, values = heal_here(out / "trainer", method, processes)
    (out / f"{job.rank}.json").write_text(json.dumps(curve))
    torch.save(values, out / f"{job.rank}.pt")
