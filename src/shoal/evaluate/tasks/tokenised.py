"""Items as rows of tokens: tokenised and truncated as lm-eval does it, with one context for all options where that is exact.

A *line* is a context and one option. A *tree* is a context and all its options side by side: an option sees the context and
itself, and its positions go on from the context's. Both give the same log-likelihoods; a tree computes the context once. Trees
need a model that takes any mask and any positions: tested by :func:`shares_context`, lines are used elsewhere.
Shapes: B rows, T tokens.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shoal.engine.view import DecoderView
from shoal.evaluate.tasks.task_files import Task, TaskItem
from shoal.text.start import begun, start_tokens
from shoal.words.types import Batch, Branches


@dataclass(frozen=True)
class TokenPair:
    """Tokens of a context and of one option after it. ``n_cut``: tokens of the context that the window had no room for."""

    context: tuple[int, ...]
    option: tuple[int, ...]
    n_cut: int = 0


@dataclass(frozen=True)
class TokenRow:
    """A context and the options that are scored in this row: pairs ``(item, option)`` say which."""

    context: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    which: tuple[tuple[int, int], ...]

    @property
    def n_tokens(self) -> int:
        """Tokens that are read: the last one of an option predicts nothing."""
        return len(self.context) + sum(len(option) - 1 for option in self.options)

    @property
    def is_tree(self) -> bool:
        return len(self.options) > 1


def encode_pair(tokenizer: Any, ctx: str, option: str) -> tuple[list[int], list[int]]:
    """Tokens of a context and of its continuation, as lm-eval 0.4.13 splits them.

    Trailing spaces of the context go to the option; both are encoded together and cut where the context alone ends. The
    tokenizer begins the text, unless it begins with the start tokens already. An empty context is the start tokens (the BOS, or
    else the end token, where the tokenizer adds none).
    """
    if ctx == "":
        prefix = start_token(tokenizer)
        start = list(start_tokens(tokenizer)) or ([] if prefix is None else [prefix])
        tokens = tokenizer.encode(option, add_special_tokens=False)
        return start, tokens[len(start) :] if tokens[: len(start)] == start else tokens
    n_spaces = len(ctx) - len(ctx.rstrip())
    if n_spaces:
        ctx, option = ctx[:-n_spaces], ctx[-n_spaces:] + option
    context = encode_prompt(tokenizer, ctx)
    return context, encode_prompt(tokenizer, ctx + option)[len(context) :]


def encode_prompt(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a text as the tokenizer begins it; start tokens that the text spells are not doubled.

    Unlike lm-eval 0.4.13, nothing stands behind it: there a tokenizer that ends texts with an EOS has it between context and
    option, and the option loses its first token.
    """
    return begun(tokenizer, text)


def start_token(tokenizer: Any) -> int | None:
    """The start token, or the end token where there is none."""
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id


def token_pair(tokenizer: Any, ctx: str, option: str, *, window: int | None) -> TokenPair:
    """A context and an option, cut to the window from the left: at most ``window`` tokens are read, one more is predicted.

    Raises:
        ValueError: a context or an option without tokens, or an option longer than the window.
    """
    context, own = encode_pair(tokenizer, ctx, option)
    if not context or not own:
        what = "context" if not context else f"option {option!r}"
        raise ValueError(f"the {what} has no tokens with this tokenizer; there is nothing to score")
    if window is not None and len(own) > window:
        raise ValueError(f"an option of {len(own)} tokens is longer than the model's window of {window}; leave the item out")
    cut = 0 if window is None else max(0, len(context) + len(own) - window - 1)
    return TokenPair(tuple(context[cut:]), tuple(own), cut)


def pairs_of(item: TaskItem, *, tokenizer: Any, window: int | None) -> list[TokenPair]:
    """One pair per choice.

    Raises:
        ValueError: an item that cannot be scored (with its line).
    """
    try:
        return [token_pair(tokenizer, item.ctx, choice, window=window) for choice in item.choices]
    except ValueError as error:
        raise ValueError(f"line {item.line}: {error}") from None


def task_pairs(task: Task, *, tokenizer: Any, window: int | None) -> list[list[TokenPair]]:
    """The pairs of every item of a task of choices or last words.

    Raises:
        ValueError: a task of written answers, an item that cannot be scored (with the file and line).
    """
    if task.form == "generation":
        raise ValueError(f"{task.path} is a task of written answers, not of choices or last words; lm-eval reads it")
    try:
        return [pairs_of(item, tokenizer=tokenizer, window=window) for item in task.items]
    except ValueError as error:
        raise ValueError(f"{task.path}, {error}") from None


def rows_of(pairs: Sequence[Sequence[TokenPair]], *, share: bool) -> list[TokenRow]:
    """Rows for the pairs of every item: a tree for the options that have one context, lines for the rest.

    Options of an item have different contexts where a long one was cut by the length of the option. Options that are the same
    tokens are read once (:func:`first_equal`): read twice, rounding would choose between them.
    """
    rows = []
    for item, options in enumerate(pairs):
        alike: dict[object, list[int]] = {}
        for index, pair in enumerate(options):
            if first_equal(options, index) == index:
                alike.setdefault(pair.context if share else index, []).append(index)
        for members in alike.values():
            context = options[members[0]].context
            rows.append(TokenRow(context, tuple(options[i].option for i in members), tuple((item, i) for i in members)))
    return rows


def first_equal(options: Sequence[TokenPair], index: int) -> int:
    """The first option that is the same tokens after the same context as option ``index``: itself, mostly."""
    return options.index(options[index])


def grouped(rows: Sequence[TokenRow], *, tokens_per_batch: int) -> Iterator[list[TokenRow]]:
    """Rows of similar length together, longest first, so that a batch that does not fit in memory is the first one."""
    for is_tree in (True, False):
        group: list[TokenRow] = []
        # The tokens are part of the key, so that equal rows stand together whatever the order of the file.
        order = sorted((row for row in rows if row.is_tree is is_tree), key=lambda r: (-r.n_tokens, r.context, r.options))
        for row in order:
            if group and (len(group) + 1) * group[0].n_tokens > tokens_per_batch:
                yield group
                group = []
            group.append(row)
        if group:
            yield group


def batch_of(group: Sequence[TokenRow], index: int) -> Batch:
    """The rows padded on the right with token 0; plain text for lines, branches for trees."""
    n_tokens = max(row.n_tokens for row in group)
    ids_BT = torch.zeros(len(group), n_tokens, dtype=torch.long)
    for b, row in enumerate(group):
        ids_BT[b, : row.n_tokens] = torch.tensor([*row.context, *(t for option in row.options for t in option[:-1])])
    if group[0].is_tree:
        return Batch(ids_BT, index=index, branches=_branches(group, n_tokens))
    mask_BT = torch.arange(n_tokens)[None] < torch.tensor([row.n_tokens for row in group])[:, None]
    return Batch(ids_BT, None if bool(mask_BT.all()) else mask_BT, index)


def _branches(group: Sequence[TokenRow], n_tokens: int) -> Branches:
    branch_BT = torch.full((len(group), n_tokens), -1)  # 0: context, 1..: options, -1: padding
    positions_BT = torch.zeros(len(group), n_tokens, dtype=torch.long)
    for b, row in enumerate(group):
        n_context, at = len(row.context), len(row.context)
        branch_BT[b, :at], positions_BT[b, :at] = 0, torch.arange(at)
        for number, option in enumerate(row.options, start=1):
            stop = at + len(option) - 1
            branch_BT[b, at:stop] = number
            positions_BT[b, at:stop] = torch.arange(n_context, n_context + stop - at)
            at = stop
    same_BTT = branch_BT[:, :, None] == branch_BT[:, None, :]
    context_B1T = (branch_BT == 0)[:, None, :]
    real_B1T = (branch_BT >= 0)[:, None, :]
    earlier_TT = torch.ones(n_tokens, n_tokens, dtype=torch.bool).tril()
    sees_BTT = (same_BTT | context_B1T) & real_B1T & real_B1T.transpose(1, 2) & earlier_TT
    return Branches(sees_BTT | torch.eye(n_tokens, dtype=torch.bool), positions_BT)


@torch.no_grad()
def shares_context(view: DecoderView, *, longest: int) -> bool:
    """True when trees are exact for this model: branches of up to ``longest`` tokens stay inside every attention window, and
    a tree of three random branches gives the logits of its three lines (within rounding)."""
    if "position_ids" not in inspect.signature(view.model.forward).parameters or not _sees_all(view.config, longest):
        return False
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(view.config.vocab_size, (16,), generator=generator).tolist()
    tree = TokenRow(
        tuple(tokens[:7]), (tuple(tokens[7:10]), tuple(tokens[10:12]), tuple(tokens[12:16])), ((0, 0), (0, 1), (0, 2))
    )
    try:
        got_TV = view.logits(batch_of([tree], 0))[0].float()
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False  # A family that refuses the mask or the positions answers the question: it cannot share a context.
    n_context, at = len(tree.context), len(tree.context)
    limit = 1e-3 if view.dtype in (torch.float32, torch.float64) else 5e-2
    for option in tree.options:
        line = TokenRow(tree.context, (option,), ((0, 0),))
        expected_TV = view.logits(batch_of([line], 0))[0].float()
        stop = at + len(option) - 1
        found_TV = torch.cat([got_TV[:n_context], got_TV[at:stop]])
        if not _close(found_TV, expected_TV, limit):
            return False
        at = stop
    return True


def _close(a_TV: Tensor, b_TV: Tensor, limit: float) -> bool:
    """Logits that are equal up to a constant per position and ``limit`` times their spread."""
    a_TV, b_TV = (x - x.mean(-1, keepdim=True) for x in (a_TV, b_TV))
    return bool((a_TV - b_TV).abs().max() <= limit * b_TV.std())


def _sees_all(config: Any, longest: int) -> bool:
    """True when no layer's own mask would hide a token of a text of ``longest`` tokens."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return window is None or longest <= window
    allowed = {"full_attention"} | ({"sliding_attention"} if window is None or longest <= window else set())
    return set(kinds) <= allowed
