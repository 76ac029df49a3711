"""The step that merges: ``merge.json``, and ``model/`` or ``adapter/``; measured, refused where it loses too much, verified."""

from __future__ import annotations

import shutil
import time

from shoal.checkpoint.new_folder import make_readable
from shoal.checkpoint.save import save
from shoal.checkpoint.verify import verify
from shoal.engine.tensors import each_tensor
from shoal.run.folder import RunFolder
from shoal.run.healing.heal_bench import HealBench
from shoal.run.healing.heal_training import HEALED
from shoal.train.heal.result import HealTraining, Merging
from shoal.words.records import stable_hash


def merge_stage(bench: HealBench, folder: RunFolder, training: HealTraining, *, has_to_merge: bool = False) -> Merging:
    """``merge.json``, and ``model/`` or ``adapter/``: the merge is measured, refused where it loses too much, and verified.

    Raises:
        ValueError: a merge that lost too much, where there has to be one; nothing is recorded, so that it can be tried anew.
    """
    key = stable_hash("healed", bench.key, bench.config.merge, bench.config.most_lost)
    if folder.is_done("model", key):
        return Merging.load(folder / "merge.json")
    started = time.monotonic()
    _ = bench.judge, bench.inputs.evaluation  # The first process hands out texts to all, who then wait while it merges.
    merging = folder.workers.from_first(lambda: _merge_and_write(bench, folder, training))
    if merging.way == "apart" and has_to_merge:
        worst = max(one.lost for one in merging.trials)
        raise ValueError(
            f"the adapter was not merged: it lost {worst:.3g} nats per token, {bench.config.most_lost:g} are allowed. The run "
            f"has no checkpoint; {folder / 'adapter'} beside {bench.path} is what was healed: raise heal.most_lost, or heal by "
            "another method"
        )
    files = ["merge.json", *(name for name in ("model", "verification.json", "adapter") if (folder / name).exists())]
    folder.finish("model", key, seconds=time.monotonic() - started, files=files)
    return merging


def _merge_and_write(bench: HealBench, folder: RunFolder, training: HealTraining) -> Merging:
    from shoal.train.heal.merge import adopt_values, merge_pupil

    for name in ("model", "adapter"):  # A run that died before it recorded the stage may have left it.
        shutil.rmtree(folder / name, ignore_errors=True)
    pupil = bench.pupil
    adopt_values(pupil.model, dict(each_tensor(folder / HEALED)))
    if pupil.method.has_adapters:
        pupil.model.save_pretrained(str(folder / "adapter"))
        make_readable(folder / "adapter")
    merging, model = merge_pupil(pupil, training.best, bench.config, bench.judge, bench.path, bench.opening)
    taken = merging.taken
    if taken is not None and taken.lost > bench.config.most_lost and pupil.method.has_adapters:
        merging, model = merging.model_copy(update={"way": "apart"}), None
    if model is not None:
        ids_BT = bench.inputs.evaluation.ids_NT[:2]
        reference = model(input_ids=ids_BT.to(bench.device), use_cache=False).logits.detach()
        save(model, None, folder / "model", source=bench.path)
        try:
            checked = verify(
                folder / "model",
                ids_BT=ids_BT,
                reference=lambda ids: reference,
                opening=bench.opening,
            )
        except ValueError:  # A checkpoint that is not the healed student must not be found under the final name.
            shutil.rmtree(folder / "model")
            raise
        checked.model_copy(update={"path": "model"}).save(folder / "verification.json")
    merging.save(folder / "merge.json")
    return merging
