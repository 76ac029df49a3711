"""One process of a job that heals again and again: ``python heal_processes.py FOLDER METHOD-PROCESSES ...``."""

import json
import sys
from pathlib import Path

import torch
from heal_world import config, world

from shoal.engine.workers import join
from shoal.train.heal.merge import trained_values
from shoal.train.heal.train import prepare, train


def heal_here(folder: Path, method: str, processes: str, pruned: str = ""):
    """The curve of a healing, and the values it ends with."""
    student, lesson = world()
    more = {"pruned": 0.5, "prune_every": 1} if pruned else {}
    asked = config(method=method, processes=processes, micro_batch=2, batch=4, tokens=192, lr=1e-3, **more)
    pupil = prepare(student, asked, lesson)
    done = train(pupil, asked, lesson, folder)
    return [point.model_dump() for point in done.curve], trained_values(pupil.model)


if __name__ == "__main__":
    job = join()
    for case in sys.argv[2:]:
        out = Path(sys.argv[1]) / case
        curve, values = heal_here(out / "trainer", *case.split("-"))
        (out / f"{job.rank}.json").write_text(json.dumps(curve))
        torch.save(values, out / f"{job.rank}.pt")
