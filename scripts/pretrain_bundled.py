"""Pretrain a small Llama like the bundled one from a text file. Runs on CPU and GPU, resumes where it stopped.

    python scripts/pretrain_bundled.py --text books.txt.gz --out small-llama
    python scripts/pretrain_bundled.py --text books.txt.gz --out deeper --layers 24 --hidden 160 --device cuda --tokens 200e6

Steps: train a byte-level BPE tokenizer on the text, pack it into blocks, AdamW with warm-up and cosine, fp32 master weights
(bf16 autocast on CUDA), save bf16 safetensors that ``AutoModelForCausalLM.from_pretrained`` opens. Blocks are drawn by a
seeded permutation per epoch; the last 1 % of the text is never trained on and gives the validation loss.

Shapes: B batch, T block length (tokens), N blocks.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|endoftext|>"
HELD_OUT = 0.01
CHUNK = 1 << 20  # So many characters are tokenised at a time.


@dataclass(frozen=True)
class Shape:
    """The model: everything its weights depend on besides the text and the seed."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    vocab: int
    length: int


@dataclass(frozen=True)
class Training:
    """The optimisation: ``tokens`` in total, ``batch`` blocks per step."""

    tokens: int
    batch: int
    lr: float
    weight_decay: float
    warmup: float
    seed: int


def read_text(path: Path) -> str:
    """The whole text; ``.gz`` is unpacked. Raises ValueError when it is empty."""
    raw = gzip.open(path, "rb").read() if path.suffix == ".gz" else path.read_bytes()
    text = raw.decode("utf-8")
    if not text.strip():
        raise ValueError(f"{path} holds no text; give a text file of at least some hundred kilobytes")
    return text


def chunks(text: str) -> Iterator[str]:
    return (text[i : i + CHUNK] for i in range(0, len(text), CHUNK))


def train_tokenizer(text: str, *, vocab: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of exactly ``vocab`` entries; id 0 ends a document."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(chunks(text[: 32 * CHUNK]), trainer)
    if tokenizer.get_vocab_size() != vocab:
        got = tokenizer.get_vocab_size()
        raise ValueError(f"--vocab {vocab}: this text gives {got} entries; give 257..{got} or more text")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)


def blocks(text: str, tokenizer: PreTrainedTokenizerFast, *, length: int) -> Tensor:
    """The text as (N, T) int32 blocks, the tail dropped."""
    ids = [i for chunk in chunks(text) for i in tokenizer.backend_tokenizer.encode(chunk).ids]
    n_blocks = len(ids) // length
    if n_blocks < 100:
        raise ValueError(f"the text has {n_blocks} blocks of {length} tokens, at least 100 are needed: give more text")
    return torch.tensor(ids[: n_blocks * length], dtype=torch.int32).view(n_blocks, length)


def build(shape: Shape, *, seed: int) -> LlamaForCausalLM:
    """A fresh fp32 model; maps into the residual stream start smaller by 1/sqrt(2 L) (GPT-2)."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.length,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_((2 * shape.layers) ** -0.5)
    return model


def learning_rate(step: int, n_steps: int, training: Training) -> float:
    """Linear warm-up to ``lr``, then cosine to a tenth of it; ``step`` counts from 0."""
    n_warm = max(1, round(training.warmup * n_steps))
    if step < n_warm:
        return training.lr * (step + 1) / n_warm
    along = (step - n_warm) / max(1, n_steps - n_warm)
    return training.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * along)))


def batch_at(step: int, ids_NT: Tensor, training: Training) -> Tensor:
    """The blocks of a step, (B, T): consecutive entries of each epoch's seeded permutation. A pure function of ``step``."""
    per_epoch = max(1, len(ids_NT) // training.batch)
    epoch, place = divmod(step, per_epoch)
    order = torch.randperm(len(ids_NT), generator=torch.Generator().manual_seed(training.seed + epoch))
    return ids_NT[order[place * training.batch : (place + 1) * training.batch]].long()


def loss_of(model: LlamaForCausalLM, ids_BT: Tensor) -> Tensor:
    """Mean next-token cross-entropy in nats; logits in fp32. bf16 autocast on CUDA only."""
    on_cuda = ids_BT.device.type == "cuda"
    with torch.autocast("cuda", dtype=torch.bfloat16) if on_cuda else nullcontext():
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    return F.cross_entropy(logits_BTV[:, :-1].float().flatten(0, 1), ids_BT[:, 1:].flatten())


@torch.no_grad()
def validation_loss(model: LlamaForCausalLM, ids_NT: Tensor, *, batch: int, device: str) -> float:
    model.eval()
    sums = [(loss_of(model, part.long().to(device)).double().item() * len(part)) for part in ids_NT.split(batch)]
    model.train()
    return sum(sums) / len(ids_NT)


def optimizer_of(model: LlamaForCausalLM, training: Training) -> torch.optim.AdamW:
    """AdamW, decay on matrices only. Moments are made at once, so that saving and resuming know every tensor."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": training.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=training.lr, betas=(0.9, 0.95))
    for parameter in matrices + vectors:
        optimizer.state[parameter] = {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def training_tensors(model: LlamaForCausalLM, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """Every tensor a resumed run needs, by name; the live ones, so that they can be written and read in place."""
    named = {f"model.{name}": parameter.data for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        named |= {f"{moment}.{name}": tensor for moment, tensor in optimizer.state[parameter].items()}
    return named


def save_checkpoint(path: Path, tensors: dict[str, Tensor], *, step: int, run: str) -> None:
    """One file, written whole or not at all."""
    temporary = path.with_suffix(".part")
    save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata={"step": str(step), "run": run})
    os.replace(temporary, path)


def load_checkpoint(path: Path, tensors: dict[str, Tensor], *, run: str) -> int:
    """Fill ``tensors`` in place; returns the steps done, 0 without a checkpoint. Raises ValueError for another run's."""
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        if file.metadata()["run"] != run:
            raise ValueError(f"{path} belongs to a run with other settings; give the same arguments or another --out")
        for name, tensor in tensors.items():
            tensor.copy_(file.get_tensor(name))
        return int(file.metadata()["step"])


def train(
    model: LlamaForCausalLM,
    ids_NT: Tensor,
    training: Training,
    *,
    folder: Path,
    device: str,
    run: str,
    every: int,
    stop: int | None,
) -> float:
    """Train to the last step, or to step ``stop`` if given (then call again to resume). Returns the validation loss.

    ``folder`` gets the checkpoint and the log. Resumed equals unbroken bit for bit on a CPU with the same threads.
    """
    n_held = max(1, round(HELD_OUT * len(ids_NT)))
    seen_NT, held_NT = ids_NT[:-n_held], ids_NT[-n_held:]
    n_steps = math.ceil(training.tokens / (training.batch * ids_NT.shape[1]))
    model.to(device).train()
    optimizer = optimizer_of(model, training)
    tensors = training_tensors(model, optimizer)
    checkpoint = folder / "state.safetensors"
    first = load_checkpoint(checkpoint, tensors, run=run)
    last = n_steps if stop is None else min(stop, n_steps)
    started = time.perf_counter()
    with (folder / "loss.jsonl").open("a") as log:
        for step in range(first, last):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, n_steps, training)
            loss = loss_of(model, batch_at(step, seen_NT, training).to(device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done = step + 1
            if done % every == 0 or done == last:
                rate = (done - first) * training.batch * ids_NT.shape[1] / (time.perf_counter() - started)
                row = {"step": done, "of": n_steps, "loss": round(loss.item(), 4), "tokens_per_second": round(rate)}
                print(json.dumps(row), file=sys.stderr)
                log.write(json.dumps(row) + "\n")
                log.flush()
            if done % (10 * every) == 0 or done == last:
                save_checkpoint(checkpoint, tensors, step=done, run=run)
    return validation_loss(model, held_NT, batch=training.batch, device=device)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Pretrain a small Llama from a text file.")
    parser.add_argument("--text", type=Path, required=True, help="a .txt or .txt.gz file")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the model; training/ in it holds what a resumed run needs"
    )
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--ffn", type=int, default=512)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--length", type=int, default=256, help="tokens per block, the model's window")
    parser.add_argument("--tokens", type=float, default=6.3e6, help="tokens to train on, repeats counted")
    parser.add_argument("--batch", type=int, default=16, help="blocks per step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--warmup", type=float, default=0.03, help="share of the steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--every", type=int, default=20, help="steps between log lines; a checkpoint every ten of them")
    parser.add_argument("--stop", type=int, default=None, help="stop after this step; the same command without it goes on")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> float:
    """Returns the validation loss in nats per token."""
    args = arguments(argv)
    shape = Shape(args.layers, args.hidden, args.ffn, args.heads, args.vocab, args.length)
    training = Training(int(args.tokens), args.batch, args.lr, args.weight_decay, args.warmup, args.seed)
    folder = args.out / "training"
    folder.mkdir(parents=True, exist_ok=True)
    text = read_text(args.text)
    tokenizer = train_tokenizer(text, vocab=shape.vocab)
    ids_NT = blocks(text, tokenizer, length=shape.length)
    model = build(shape, seed=training.seed)
    n_parameters = sum(p.numel() for p in model.parameters())
    print(f"{n_parameters:,} parameters, {ids_NT.numel():,} tokens of text, {training.tokens:,} to train on", file=sys.stderr)
    run = json.dumps({"shape": asdict(shape), "training": asdict(training), "tokens_of_text": ids_NT.numel()})
    loss = train(model, ids_NT, training, folder=folder, device=args.device, run=run, every=args.every, stop=args.stop)
    model.to("cpu", torch.bfloat16).eval().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(f"validation loss {loss:.4f} nats, perplexity {math.exp(loss):.2f}; saved {args.out}", file=sys.stderr)
    return loss


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
