"""Shoal on one NVIDIA card: the same numbers as elsewhere, and what the long stages take.

    python benchmarks/gpu.py [--device cuda] [--only agree scan streamed repair memory] [--seconds 420] [--out FILE]
    python benchmarks/gpu.py --device cpu --tiny        # the same logic in minutes on any machine

- agree: ``compress`` of the bundled model in float32 (the default, a trained layer, ``polished``) on the CPU, on the card
  with all layers resident, and on the card with layers read from disk. The plan must be the same everywhere and the KL within
  ``KL_TOLERANCE`` of the CPU's; the two runs on the card should have equal bits, file by file. Attention's backward on a card
  may add in any order, so trained values are also compared by their largest difference.
- scan: tokens per second of the scan of a random model of Llama 8B's shape (bfloat16, 32 layers, 4096 wide, vocabulary 32,000)
  against a plain forward of its trunk. A round runs forward, scan, forward on the same batches; its ratio is the scan over the
  mean of the two; printed are medians over rounds. ``replay`` is the engine's pass that observes nothing.
- streamed: the same model on disk as safetensors shards, scanned with one layer resident against all of them: time, bytes read
  over bytes stored, peak on the card, equal tables; and how fast eight layers are read alone, with a cold and a warm file
  cache.
- repair: the sweep after a cut of 8 layers in the middle, with the default's ridges chosen by cross-validation; it is stopped
  after ``--repair-seconds``, and the seconds of each layer are kept. ``solves`` times the parts of a solve of the widest map.
- memory: every stage of ``compress`` of a 1.6 GB random model: the peak that was allocated on the card, against
  ``shoal plan --memory --device cuda``.

Random weights: nothing here says what a cut costs in quality. Every result is printed when it is known and written to the file
after each part; a part that fails says why, and the next one runs.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_shared import (
    TINY,
    Asked,
    digest,
    equal_bytes,
    forget,
    largest_difference,
    peak_of,
    random_batches,
    random_model,
    scanned,
    solves,
    timed,
    wait,
)

from shoal.engine.opening import Opening

BUNDLED = Path(__file__).parents[1] / "src/shoal/assets/books-16l"
KL_TOLERANCE = {"default": 2e-3, "layer": 2e-2, "polished": 2e-2}
"""Relative. Products of another device sum in another order; training carries that through every step."""

CASES: dict[str, tuple[dict[str, Any], str]] = {
    "default": ({"fit": {"tokens": 8192}}, "1"),
    "layer": ({"replace": "layer", "repair": "none", "train": {"tokens": 4096}}, "1"),
    # On logits every layer behind the cut runs at every step, so all are held; the engine still goes layer by layer.
    "polished": ({"fit": {"tokens": 4096}, "train": {"tokens": 4096}}, "16"),
}
FILES = ("scan.safetensors", "plan.json", "fit.safetensors", "train.safetensors", "model/model.safetensors")


# -- the parts -----------------------------------------------------------------------------------------------------------


def agree(asked: Asked) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=asked.scratch) as scratch:
        for name, (changes, held) in CASES.items():
            runs = {"cpu": ("cpu", "all"), "card": (asked.device, "all"), "card_streamed": (asked.device, held)}
            found = {}
            for run, (device, resident) in runs.items():
                out = Path(scratch) / f"{name}-{run}"
                found[run] = compressed(name, changes, out, device=str(device), resident=resident)
                asked.say("agree", case=name, run=run, **{key: found[run][key] for key in ("seconds", "kl", "plan")})
            reference, card, streamed = (found[run] for run in runs)
            kl_error = abs(card["kl"] - reference["kl"]) / reference["kl"]
            folders = [Path(scratch) / f"{name}-{run}" for run in ("card", "card_streamed")]
            same = {file: equal_bytes(*(folder / file for folder in folders)) for file in FILES}
            rows[name] = {
                **{f"{run}_seconds": one["seconds"] for run, one in found.items()},
                **{f"{run}_kl": one["kl"] for run, one in found.items()},
                "same_plan": reference["plan"] == card["plan"] == streamed["plan"],
                "kl_relative_difference_to_cpu": kl_error,
                "kl_within_tolerance": kl_error <= KL_TOLERANCE[name],
                "equal_bytes_on_the_card": {file: equal for file, equal in same.items() if equal is not None},
                "largest_relative_difference_of_the_checkpoints": largest_difference(*(f / FILES[-1] for f in folders)),
            }
            asked.say("agree", case=name, **rows[name])
    return rows


def compressed(name: str, changes: dict[str, Any], out: Path, *, device: str, resident: str) -> dict[str, Any]:
    from shoal import compress, load_recipe

    text = {"samples": 16, "length": 64, "selection": 8, "evaluation": 8}
    recipe = load_recipe(
        "polished" if name == "polished" else "default", {"model": str(BUNDLED), "drop": "4", "text": text, **changes}
    )
    started = time.monotonic()
    done = compress(recipe, out, opening=Opening(device=device, resident=resident, dtype="float32"))
    quality = done.evaluation.quality
    return {"seconds": round(time.monotonic() - started, 1), "kl": quality.kl, "plan": str(done.plan)}


def scan_speed(asked: Asked) -> dict[str, Any]:
    from shoal.engine.passes import run_pass
    from shoal.engine.student import TEACHER
    from shoal.engine.view import DecoderView

    model = random_model(asked)
    view = DecoderView(model)
    rows = {}
    for per_batch in (2, 8):
        batches = random_batches(asked, n_tokens=4096 if asked.tiny else 32768, per_batch=per_batch)
        n_tokens = sum(batch.ids_BT.numel() for batch in batches)

        @torch.no_grad()
        def plain(batches: list[Any] = batches) -> None:
            for batch in batches:
                model.model(input_ids=batch.ids_BT.to(asked.device), use_cache=False)

        def replay(batches: list[Any] = batches) -> None:
            run_pass(view, batches, students=[TEACHER], sink=lambda reading, finals: None)

        def scan(batches: list[Any] = batches) -> None:
            scanned(view, batches)

        row: dict[str, Any] = {"batch": per_batch, "length": asked.length, "tokens": n_tokens}
        for work in (plain, replay, scan):  # The first run is a warm-up, and shows the peaks.
            with peak_of(asked.device, row, f"{work.__name__}_peak_gb"):
                work()
        rounds = [[timed(asked.device, work) for work in (plain, scan, plain, replay, plain)] for _ in range(5)]
        row["forward_tokens_per_s"] = round(n_tokens / statistics.median(r[0] for r in rounds))
        row["scan_tokens_per_s"] = round(n_tokens / statistics.median(r[1] for r in rounds))
        row["scan_over_forward"] = round(statistics.median(2 * r[1] / (r[0] + r[2]) for r in rounds), 4)
        row["replay_over_forward"] = round(statistics.median(2 * r[3] / (r[2] + r[4]) for r in rounds), 4)
        rows[f"batch_{per_batch}"] = row
        asked.say("scan", **row)
    return rows


def streamed(asked: Asked) -> dict[str, Any]:
    from shoal.engine.streamed import open_streamed
    from shoal.engine.view import DecoderView

    row: dict[str, Any] = {}
    model = random_model(asked)
    with tempfile.TemporaryDirectory(dir=asked.scratch) as scratch:
        folder = Path(scratch) / "model"
        started = time.monotonic()
        model.save_pretrained(folder, max_shard_size="2GB")
        row["write_seconds"] = round(time.monotonic() - started, 1)
        row["model_gb"] = round(sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e9, 2)
        asked.say("streamed", **row)
        sizes = {"small": 4096 if asked.tiny else 32768, "large": 8192 if asked.tiny else 131072}
        texts = {name: random_batches(asked, n_tokens=size, per_batch=2) for name, size in sizes.items()}
        view = DecoderView(model)
        scanned(view, texts["small"])  # The first run is a warm-up.
        resident = {}
        for name, batches in texts.items():
            with peak_of(asked.device, row, f"{name}_resident_peak_gb"):
                resident[name] = [timed(asked.device, lambda: scanned(view, batches)) for _ in range(2)]  # noqa: B023
        expected = digest(scanned(view, texts["small"]))
        del model, view
        forget(asked.device)

        opened, layers = open_streamed(folder, Opening(device=str(asked.device)))
        view = DecoderView(opened.model, residency=layers)
        stored = sum(slot.n_bytes for index, own in layers._places.items() if index is not None for _, slot in own.values())

        def read(n_layers: int = min(8, view.n_layers)) -> None:
            for index in range(n_layers):
                with layers.layer(index):
                    pass
            layers.settle(())

        read()  # Pinned memory is taken, and the files were just written.
        for file in folder.glob("*.safetensors"):
            handle = os.open(file, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)
        for name in ("cold", "warm"):
            before, seconds = layers.bytes_read, timed(asked.device, read)
            row[f"{name}_read_gb_per_s"] = round((layers.bytes_read - before) / seconds / 1e9, 2)
            asked.say("streamed", **{f"{name}_read_gb_per_s": row[f"{name}_read_gb_per_s"]})
        for name, batches in texts.items():
            layers.settle(())
            before, took = layers.bytes_read, []
            with peak_of(asked.device, row, f"{name}_streamed_peak_gb"):
                for _ in range(2):
                    took.append(timed(asked.device, lambda: scanned(view, batches)))  # noqa: B023
                    layers.settle(())
            row[f"{name}_tokens"] = sum(batch.ids_BT.numel() for batch in batches)
            row[f"{name}_bytes_read_over_stored"] = (layers.bytes_read - before) / stored / 2
            row[f"{name}_resident_seconds"], row[f"{name}_streamed_seconds"] = resident[name], took
            row[f"{name}_streamed_over_resident"] = round(min(took) / min(resident[name]), 3)
            asked.say("streamed", **{key: value for key, value in row.items() if key.startswith(name)})
        row["tables_are_equal"] = digest(scanned(view, texts["small"])) == expected
        row["host_peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)
        asked.say("streamed", tables_are_equal=row["tables_are_equal"], host_peak_gb=row["host_peak_gb"])
    return row


class TimeIsUp(Exception):
    pass


def repair(asked: Asked) -> dict[str, Any]:
    from shoal.edits.drop import Drop
    from shoal.edits.plan import Plan
    from shoal.engine.view import DecoderView
    from shoal.fit.fit_config import FitConfig
    from shoal.fit.fit_plan import fit_plan
    from shoal.text.samples import Samples
    from shoal.words.structure import Size

    row: dict[str, Any] = {"solves": solves(asked)}
    forget(asked.device)
    model = random_model(asked)
    view, n_layers = DecoderView(model), asked.shape["num_hidden_layers"]
    n_gone = 8 if n_layers > 12 else 3
    first = (n_layers - n_gone) // 2 + 1
    size = Size(layers=n_layers, parameters=0)
    plan = Plan(
        source="random", source_hash="", teacher="random", n_layers=n_layers, before=size, after=size,
        edits=(Drop(indices=tuple(range(first, first + n_gone))),),
    )  # fmt: skip
    n_samples = max(20, asked.fit_tokens // asked.length)
    ids_NT = torch.randint(0, asked.shape["vocab_size"], (n_samples, asked.length), generator=torch.Generator().manual_seed(2))
    samples = Samples(ids_NT, torch.full((n_samples,), asked.length), "training", "random", "random-0", 0)
    started, marks = time.monotonic(), [0.0]

    def progress(done: int, total: int) -> None:
        wait(asked.device)
        marks.append(time.monotonic() - started)
        asked.say("repair", layer=done, of=total, seconds=round(marks[-1], 1))
        if marks[-1] > asked.repair_seconds:
            raise TimeIsUp

    row |= {"removed": f"{first}..{first + n_gone - 1}", "tokens": samples.n_tokens, "finished": True}
    with peak_of(asked.device, row):
        try:
            found = fit_plan(view, plan, samples, repair="sweep", batch_size=2, config=FitConfig(), progress=progress)
            names = ("layer", "seconds", "error_before", "error_after")
            row["layers"] = [{name: getattr(one, name) for name in names} for one in found.result.layers]
        except TimeIsUp:
            row["finished"] = False
    row["seconds"] = round(marks[-1], 1)
    steps = [round(b - a, 2) for a, b in zip(marks, marks[1:], strict=False)]
    refitted = [step for step, layer in zip(steps, range(n_layers), strict=False) if layer >= first - 1]
    row["seconds_of_each_step"] = steps
    if refitted:
        row["seconds_of_a_refitted_layer"] = statistics.median(refitted)
        row["seconds_of_all_refitted_layers"] = round(statistics.median(refitted) * (n_layers - first - n_gone + 1), 1)
    asked.say("repair", **row)
    return row


def memory(asked: Asked) -> list[dict[str, Any]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    from shoal import compress, load_recipe
    from shoal.run import folder as folders
    from shoal.run.memory_plan.needs import needs_of

    sizes = dict(hidden_size=2048, intermediate_size=5632, num_attention_heads=16, num_key_value_heads=16, num_hidden_layers=16)
    if asked.tiny:
        sizes = {**{name: TINY[name] for name in sizes}, "num_hidden_layers": 8}
    peaks: dict[str, int] = {}
    finish = folders.RunFolder.finish

    def finished(self: Any, stage: str, *args: Any, **options: Any) -> Any:
        if asked.device.type == "cuda":
            peaks[stage] = torch.cuda.max_memory_allocated(asked.device)
            torch.cuda.reset_peak_memory_stats(asked.device)
        return finish(self, stage, *args, **options)

    rows = []
    folders.RunFolder.finish = finished  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory(dir=asked.scratch) as scratch:
            source = Path(scratch) / "model"
            tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
            torch.manual_seed(0)
            config = LlamaConfig(
                **sizes, vocab_size=len(tokenizer), max_position_embeddings=256,
                bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
            with torch.device(asked.device):
                AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(source, max_shard_size="500MB")
            tokenizer.save_pretrained(source)
            text = {"samples": 16, "length": 256, "selection": 8, "evaluation": 8}
            cases: dict[str, dict[str, Any]] = {
                "sweep": {"fit": {"tokens": 4096 if asked.tiny else 32768}},
                "layer": {"replace": "layer", "repair": "none", "train": {"tokens": 2048 if asked.tiny else 8192}},
            }
            for case, more in cases.items():
                for resident in ("all", "1"):
                    changes = {"model": str(source), "drop": "25%layers", "guard": 2, "text": text, **more}
                    recipe, out = load_recipe("default", changes), Path(scratch) / f"{case}-{resident}"
                    forget(asked.device)
                    planned = needs_of(recipe, Opening(resident=resident, device=str(asked.device)))
                    if asked.device.type == "cuda":
                        torch.cuda.reset_peak_memory_stats(asked.device)
                    started = time.monotonic()
                    compress(recipe, out, opening=Opening(device=str(asked.device), resident=resident))
                    took = time.monotonic() - started
                    asked.say("memory", case=case, resident=resident, seconds=round(took, 1))
                    for stage in planned.stages:
                        peak = peaks.get(stage.stage)
                        ours = stage.memory - stage.parts["process"]  # The part of the driver is not that of the allocator.
                        row = {
                            "case": case,
                            "resident": resident,
                            "stage": stage.stage,
                            "planned_mb": round(ours / 1e6),
                        }
                        if peak:
                            row |= {"allocated_mb": round(peak / 1e6), "ratio": round(ours / peak, 3)}
                        row["parts_mb"] = {part: round(n_bytes / 1e6) for part, n_bytes in stage.parts.items() if n_bytes}
                        rows.append(row)
                        asked.say("memory", **row)
                    peaks.clear()
    finally:
        folders.RunFolder.finish = finish  # type: ignore[method-assign]
    return rows


PARTS: dict[str, tuple[Callable[[Asked], Any], float]] = {
    "scan": (scan_speed, 60), "streamed": (streamed, 60), "agree": (agree, 60), "repair": (repair, 40), "memory": (memory, 40),
}  # fmt: skip
"""What a part runs, and the seconds that must be left for it to begin."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=420.0, help="no part begins that may not end by then")
    parser.add_argument("--repair-seconds", type=float, default=90.0)
    parser.add_argument("--fit-tokens", type=int, default=131072)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script on any machine")
    parser.add_argument(
        "--scratch", default=tempfile.gettempdir(), help="for models that are written: 16 GB (with --tiny: little)"
    )
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "gpu.json"))
    asked = Asked(parser.parse_args())
    only = parser.parse_args().only
    name = torch.cuda.get_device_name(asked.device) if asked.device.type == "cuda" else "cpu"
    free = shutil.disk_usage(asked.scratch).free
    asked.keep(
        "machine", {"device": name, "torch": torch.__version__, "cores": os.cpu_count(), "scratch_free_gb": free // 10**9}
    )
    asked.say("machine", **asked.results["machine"])
    failed = []
    for part in only:
        work, least = PARTS[part]
        if asked.seconds_left < least and not asked.tiny:
            asked.keep(part, "not begun: too little time was left")
            asked.say(part, skipped=f"{asked.seconds_left:.0f} s are left")
            continue
        started = time.monotonic()
        try:
            asked.keep(part, work(asked))
        except Exception:  # One part that fails must not cost the others; the file and the exit code say so.
            traceback.print_exc()
            failed.append(part)
            asked.keep(part, {"failed": traceback.format_exc().splitlines()[-12:]})
        forget(asked.device)
        asked.say(part, took=round(time.monotonic() - started, 1), seconds_left=round(asked.seconds_left))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
