"""What it costs to compare students with their teacher over a large vocabulary: figures one by one, and in one pass.

    OMP_NUM_THREADS=1 python benchmarks/measuring.py [--rounds N] [--out FILE]

Random logits of 49,152 tokens in bfloat16, as of SmolLM2; 512 positions. A round runs both ways on the same logits; the order
swaps from round to round, and a ratio is of processor times within a round, so a busy machine slows both alike.

- figures: KL, agreement, NLL and overlap of 1 and of 4 students, by the functions of ``divergence`` one after the other, and by
  ``compare_tokens``.
- perplexity: the last boundary of two windows of 512 whose second half is scored, by the logits of all tokens, and by those of
  the scored tokens alone (random Llama of d = 576).
- causal: one attention layer of SmolLM2's shape over 2,048 tokens, with a mask in full and with the causal flag instead.

About two minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

VOCABULARY, HIDDEN, TOKENS = 49_152, 576, 512
Work = Callable[[], Any]


def figures(n_students: int) -> tuple[Work, Work]:
    from shoal.measure.divergence import forward_kl, overlap, token_nll, top1_agreement
    from shoal.measure.one_pass import compare_tokens

    torch.manual_seed(0)
    teacher = (3 * torch.randn(TOKENS, VOCABULARY)).bfloat16()
    students = [(teacher + 0.5 * torch.randn(TOKENS, VOCABULARY)).bfloat16() for _ in range(n_students)]
    ids = torch.randint(VOCABULARY, (TOKENS,))

    def one_by_one() -> None:
        for one in students:
            forward_kl(teacher, one), top1_agreement(teacher, one), token_nll(one, ids), overlap(teacher, one)

    return one_by_one, lambda: compare_tokens(teacher, students, ids, with_overlap=True)


def perplexity() -> tuple[Work, Work]:
    from transformers import LlamaConfig, LlamaForCausalLM

    from shoal.engine.view import DecoderView
    from shoal.measure.counted import head_blocks
    from shoal.measure.divergence import token_nll
    from shoal.words.types import Batch

    torch.manual_seed(0)
    shape = dict(hidden_size=HIDDEN, intermediate_size=1536, num_hidden_layers=1, num_attention_heads=9, num_key_value_heads=3)
    view = DecoderView(LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **shape)).bfloat16())
    batch = Batch(torch.randint(VOCABULARY, (2, TOKENS)))
    reading = view.read(batch)
    h_BTD = torch.randn(2, TOKENS, HIDDEN).bfloat16()
    where_BT = (torch.arange(1, TOKENS) >= TOKENS // 2).expand(2, -1)
    next_N = batch.ids_BT[:, 1:][where_BT]

    def of_all() -> None:
        token_nll(view.head(h_BTD, reading), batch.ids_BT.roll(-1, dims=1))[:, :-1][where_BT].double().sum()

    def of_the_scored() -> None:
        for block, (logits,) in head_blocks([view], [h_BTD], where_BT):
            token_nll(logits, next_N[block]).double().sum()

    return of_all, of_the_scored


def causal() -> tuple[Work, Work]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 9, 2048, 64).bfloat16() for _ in range(3))
    mask = torch.ones(2048, 2048, dtype=torch.bool).tril()[None, None]
    attend = torch.nn.functional.scaled_dot_product_attention
    return lambda: attend(q, k, v, attn_mask=mask), lambda: attend(q, k, v, is_causal=True)


CASES: dict[str, Callable[[], tuple[Work, Work]]] = {
    "figures of 1 student": lambda: figures(1),
    "figures of 4 students": lambda: figures(4),
    "perplexity": perplexity,
    "causal": causal,
}


@torch.no_grad()
def compare(before: Work, now: Work, rounds: int) -> dict[str, Any]:
    pairs = []
    before(), now()
    for turn in range(rounds):
        times = [0.0, 0.0]
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            started = time.process_time()
            (before, now)[which]()
            times[which] = time.process_time() - started
        pairs.append(times)
    return {
        "seconds_before": statistics.median(one[0] for one in pairs),
        "seconds_now": statistics.median(one[1] for one in pairs),
        "ratio": statistics.median(one[1] / one[0] for one in pairs),
        "pairs": pairs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "measuring.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"threads": 1, "torch": torch.__version__, "tokens": TOKENS, "vocabulary": VOCABULARY, "cases": {}}
    for name, make in CASES.items():
        result["cases"][name] = found = compare(*make(), options.rounds)
        print(f"{name}: {found['seconds_before']:.2f} s -> {found['seconds_now']:.2f} s ({found['ratio']:.2f})", flush=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
