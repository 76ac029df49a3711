"""Speed in the form of LLM-Streamline's appendix (dense, none, FFN, layer), and the decode speed-up against its bound.

    python benchmarks/speed.py [--rounds N] [--new-tokens N] [--prompt N] [--batch N] [--case bundled|random] [--out FILE]

Two models: the bundled one, and a random one of 24 layers with d = 512. A quarter of the layers is removed from the middle; all
students have the same number of layers:

* ``none``: the cut as a stock model; ``layer``: one layer more goes, and one trained copy stands in its place (stock).
* ``ffn``: LLM-Streamline's two maps behind the layer before the cut, as code that comes with a checkpoint would run it.

All models and the teacher's first layers (for t0 and t1) take turns in every round, in an order that swaps, so other work on
the machine hits all of them. The condition is of stock layouts: decode speed-up over its bound (t0 + L t1) / (t0 + L' t1), t0
and t1 fitted to the teacher alone, both within a round, median over rounds: at least 0.97. ``self`` is the teacher against
itself: its interval holds 1.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from shoal.checkpoint.in_memory import cut
from shoal.cli.malloc import keep_freed_memory
from shoal.edits.drop import Drop
from shoal.edits.plan import Plan
from shoal.edits.replace.replace_edit import Replace
from shoal.edits.student_of import student_of
from shoal.engine.families import find_layers
from shoal.engine.open import open_model
from shoal.engine.view import DecoderView
from shoal.evaluate.cost import cost
from shoal.evaluate.intervals import Interval
from shoal.evaluate.speed import AtDepth, Rates, Speed, at_depths, in_turns, median_interval, median_iqr
from shoal.run.job import bundled_model, versions
from shoal.select.model_size import NOTHING, model_size, size_without

NEEDED = 0.97
STOCK = ("none", "layer")


def random_model() -> LlamaForCausalLM:
    """24 layers, d = 512, the vocabulary of the bundled model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512, intermediate_size=1408, num_hidden_layers=24, num_attention_heads=8, num_key_value_heads=8,
        vocab_size=4096, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def plan_of(view: DecoderView, kind: str, n: int) -> Plan:
    """n layers fewer, from the middle; ``layer`` takes one more and puts it back."""
    size, start = model_size(view), (view.n_layers - n) // 2
    edit: Drop | Replace = Drop(indices=tuple(range(start, start + n)))
    if kind != "none":
        edit = Replace(start=start - (kind == "layer"), stop=start + n, replacement=kind)
    after = size_without(size, range(start, start + n), NOTHING)
    return Plan(
        source="m", source_hash="m", teacher="m", n_layers=view.n_layers, edits=(edit,), before=size.before, after=after
    )


def student_model(view: DecoderView, kind: str, n: int) -> Any:
    """The student as users run it."""
    plan = plan_of(view, kind, n)
    if kind in STOCK:
        return cut(view, student_of(view, plan))
    (one,) = student_of(view, plan).attached
    bare = cut(view, student_of(view, plan_of(view, "none", n)))
    before = find_layers(bare)[1][one.span.start - 1]
    forward = before.forward

    def with_module(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        first = out[0] if isinstance(out, tuple) else out
        done = one.module(first, *args[1:], **{k: v for k, v in kwargs.items() if k != "hidden_states"})
        done = done[0] if isinstance(done, tuple) else done
        return (done, *out[1:]) if isinstance(out, tuple) else done

    before.forward = with_module
    bare.add_module("beside_the_layers", one.module)  # With this its weights are counted.
    return bare


def measure(name: str, view: DecoderView, args: argparse.Namespace) -> dict[str, Any]:
    n = round(view.n_layers / 4)
    kinds = ("none", "ffn", "layer")
    students = {kind: student_model(view, kind, n) for kind in kinds}
    shallow = at_depths(view)
    models = [view.model, view.model, *students.values(), *shallow.values()]
    work = dict(batch_size=args.batch, prompt_length=args.prompt, new_tokens=args.new_tokens)
    dense, again, *rest = in_turns(models, rounds=args.rounds, warmup=2, **work)
    depths = tuple(AtDepth(layers=d, rates=one) for d, one in zip(shallow, rest[len(kinds) :], strict=True))

    def speed(rates: Rates, n_layers: int) -> Speed:
        return Speed(
            teacher=dense, student=rates, depths=depths, teacher_layers=view.n_layers, student_layers=n_layers,
            device="cpu", dtype=str(view.dtype).removeprefix("torch."), n_threads=torch.get_num_threads(), **work,
        )  # fmt: skip

    rows = {}
    for kind, rates, n_layers in (
        ("dense", dense, view.n_layers),
        ("self", again, view.n_layers),
        *((kind, one, view.n_layers - n) for kind, one in zip(kinds, rest, strict=False)),
    ):
        found = speed(rates, n_layers)
        model = view.model if kind in ("dense", "self") else students[kind]
        rows[kind] = {
            "layers": n_layers,
            "parameters": sum(p.numel() for p in model.parameters()),
            "kv_bytes_per_token": cost(view, context=args.prompt).kv_bytes_per_token * n_layers / view.n_layers,
            "first_token_ms": 1000 * found.first_token_seconds(rates),
            "peak_bytes": rates.peak_bytes,
            **{f"{phase}_tokens_per_second": median_iqr(getattr(rates, phase)) for phase in ("prefill", "decode")},
            "rates": rates.model_dump(mode="json", exclude={"peak_bytes"}),
        }
        for phase in ("prefill", "decode"):
            ratio = found.ratio(phase)  # type: ignore[arg-type]
            bound = found.bound(phase)  # type: ignore[arg-type]
            rows[kind][f"{phase}_ratio"] = ratio.model_dump()
            rows[kind][f"{phase}_bound"] = bound
            rows[kind][f"{phase}_over_bound"] = over_bound(found, phase).model_dump()
    times = speed(dense, view.n_layers)
    return {
        "model": name,
        **work,
        "rounds": args.rounds,
        "layer_seconds": {phase: times.layer_time(phase).model_dump() for phase in ("prefill", "decode")},  # type: ignore[union-attr, arg-type]
        "depths": [one.model_dump() for one in depths],
        "rows": rows,
        "passes": {kind: rows[kind]["decode_over_bound"]["value"] >= NEEDED for kind in STOCK},
        "self_holds_1": rows["self"]["decode_ratio"]["low"] <= 1 <= rows["self"]["decode_ratio"]["high"],
    }


def over_bound(found: Speed, phase: str) -> Interval:
    """Speed-up over its bound, both from the same round; median over rounds."""
    quotients = []
    for index in range(len(found.teacher.decode)):
        one = found.model_copy(
            update={
                name: at_round(value, index) if name != "depths" else tuple(at_round(depth, index) for depth in value)
                for name, value in (("teacher", found.teacher), ("student", found.student), ("depths", found.depths))
            }
        )
        quotients.append(one.ratio(phase).value / one.bound(phase))  # type: ignore[arg-type]
    return median_interval(quotients)


def at_round(rates: Any, index: int) -> Any:
    return rates.model_copy(update={"prefill": (rates.prefill[index],), "decode": (rates.decode[index],)})


def show(found: dict[str, Any]) -> None:
    print(f"{found['model']}: batch {found['batch_size']}, prompt {found['prompt_length']}, {found['new_tokens']} new tokens")
    head = ("", "layers", "parameters", "prefill/s", "decode/s", "decode ratio", "(95 %)", "bound", "ratio/bound", "peak MB")
    print("{:6} {:>6} {:>11} {:>10} {:>9} {:>12} {:>14} {:>6} {:>11} {:>8}".format(*head))
    for kind, row in found["rows"].items():
        ratio = row["decode_ratio"]
        print(
            f"{kind:6} {row['layers']:6} {row['parameters']:11,} {row['prefill_tokens_per_second'][0]:10,.0f} "
            f"{row['decode_tokens_per_second'][0]:9.1f} {ratio['value']:12.3f} {ratio['low']:6.3f}..{ratio['high']:.3f} "
            f"{row['decode_bound']:6.3f} {row['decode_over_bound']['value']:11.3f} {row['peak_bytes'] / 1e6:8.1f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--case", choices=("bundled", "random"), action="append", help="default: both")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "speed.json")
    args = parser.parse_args()
    keep_freed_memory()
    made = {"bundled": lambda: open_model(bundled_model()).model, "random": random_model}
    cases = []
    for case in args.case or made:
        cases.append(measure(case, DecoderView(made[case]()), args))
        show(cases[-1])
    args.out.parent.mkdir(exist_ok=True)
    content = {
        "versions": versions(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "needed_over_bound": NEEDED,
        "cases": cases,
    }
    args.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
