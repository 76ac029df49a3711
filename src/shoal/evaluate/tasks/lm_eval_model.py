"""A view as a model of lm-eval: the batched scorer answers its requests, for any number of students in one pass.

lm-eval asks three things of a model: the log-likelihood of a text after a context, that of a whole text, and a greedy
continuation. All are answered once for all students of a view and kept, so that the next student finds its answers there.
Beside the log-likelihoods stands what lm-eval does not ask for: the mean NLL over context and option, from which
LLM-Streamline's stability is computed, and which contexts did not fit the window.
"""

from collections.abc import Callable, Sequence
from typing import Any

from shoal.engine.student import TEACHER, Student
from shoal.engine.view import DecoderView
from shoal.evaluate.generate import greedy_texts, model_of
from shoal.evaluate.tasks.choice import PairScore, score_pairs
from shoal.evaluate.tasks.tokenised import TokenPair, encode_prompt, start_token, token_pair
from shoal.text.start import start_tokens

NEW_TOKENS = 256  # This is lm-eval's limit for tasks that name none.
LIMITS = (
    "max_gen_toks",
    "max_new_tokens",
    "max_tokens",
    "max_completion_tokens",
)  # Tasks give that limit under any of these names.
LONGEST = 2048  # This is lm-eval's window for whole texts where the model states none.

Pair = tuple[str, str]
Writing = tuple[str, str]
"""A prompt, and its options as text."""


class Requests:
    """What all students of a view answer to lm-eval's requests.

    Args:
        students: overlays on the view.
        window: longest input in tokens; longer contexts are cut from the left and noted. None: no limit.
        progress: called with (done, in all); batches of options, or texts that were written.

    Attributes:
        scores: per student, what was said about every pair of context and option.
        cut: requests whose context lost its beginning, as (context, option or options of the writing).
    """

    def __init__(
        self,
        view: DecoderView,
        students: Sequence[Student] = (TEACHER,),
        *,
        tokenizer: Any,
        window: int | None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._view, self._students, self._tokenizer, self._window = view, list(students), tokenizer, window
        self._progress = progress
        self.scores: list[dict[Pair, PairScore]] = [{} for _ in students]
        self._texts: list[dict[Writing, str]] = [{} for _ in students]
        self.cut: set[Pair] = set()

    def loglikelihood(self, pairs: Sequence[Pair], member: int) -> list[tuple[float, bool]]:
        """Of every option after its context, and whether it is the greedy continuation.

        Raises:
            ValueError: a request that cannot be scored, or NaN or infinite states.
        """
        options: dict[str, dict[str, TokenPair]] = {}  # Options are grouped by context, so that one reading serves all of them.
        for context, option in pairs:
            if (context, option) not in self.scores[member]:
                pair = self._encoded(context, option)
                options.setdefault(context, {})[option] = pair
                if pair.n_cut:
                    self.cut.add((context, option))
        if options:
            asked = [list(one.values()) for one in options.values()]
            scored, _ = score_pairs(self._view, asked, students=self._students, progress=self._progress)
            for known, items in zip(self.scores, scored, strict=True):
                for (context, texts), found in zip(options.items(), items, strict=True):
                    known.update({(context, option): one for option, one in zip(texts, found, strict=True)})
        found = [self.scores[member][pair] for pair in pairs]
        return [(one.loglikelihood, one.is_greedy) for one in found]

    def _encoded(self, context: str, option: str) -> TokenPair:
        try:
            return token_pair(self._tokenizer, context, option, window=self._window)
        except ValueError as error:
            raise ValueError(f"the item {context[-40:]!r}: {error}") from None

    def loglikelihood_rolling(self, texts: Sequence[str], member: int) -> list[float]:
        """Of whole texts, in windows that begin as the tokenizer begins a text."""
        windows = [rolling_pairs(self._tokenizer, text, longest=self._window or LONGEST) for text in texts]
        # Every window is an item of its own: windows share no context.
        items = [[pair] for pairs in windows for pair in pairs]
        scored, _ = score_pairs(self._view, items, students=[self._students[member]], progress=self._progress)
        every = iter([one.loglikelihood for (one,) in scored[0]])
        return [sum(next(every) for _ in pairs) for pairs in windows]

    def generate_until(self, writings: Sequence[tuple[str, dict[str, Any]]], member: int) -> list[str]:
        """Greedy continuations, each cut at its first stop.

        Raises:
            ValueError: a task that samples, a prompt without tokens, a limit that leaves no room for the prompt.
        """
        wanted = [(context, str(options)) for context, options in writings]
        known = self._texts[member]
        missing = {key: options for key, (_, options) in zip(wanted, writings, strict=True) if key not in known}
        for options in {str(one): one for one in missing.values()}.values():
            self._write([key for key in missing if key[1] == str(options)], options, member)
        return [known[key] for key in wanted]

    def _write(self, keys: Sequence[Writing], options: dict[str, Any], member: int) -> None:
        if options.get("do_sample") and options.get("temperature", 1.0) > 0:
            raise ValueError("the task samples its texts, and answers are compared as greedy texts; choose another task")
        until = options.get("until") or []
        stop = [one for one in ([until] if isinstance(until, str) else until) if one]
        limit = int(next((options[name] for name in LIMITS if options.get(name)), NEW_TOKENS))
        if self._window is not None and limit >= self._window:
            raise ValueError(
                f"the task writes up to {limit} tokens, which leaves nothing of the model's window of {self._window} for the "
                "question; take a model of a longer window"
            )
        prompts = []
        for key in keys:
            tokens = encode_prompt(self._tokenizer, key[0])
            if not tokens:
                raise ValueError(f"the prompt {key[0]!r} has no tokens with this tokenizer; there is nothing to continue")
            room = len(tokens) if self._window is None else self._window - limit
            if len(tokens) > room:
                self.cut.add(key)
            prompts.append(tokens[-room:])
        model = model_of(self._view, self._students[member])
        texts = greedy_texts(model, self._tokenizer, prompts, max_new_tokens=limit, stop=stop)
        for done, (index, text) in enumerate(texts, start=1):
            for one in stop:
                text = text.split(one)[0]
            self._texts[member][keys[index]] = text
            if self._progress is not None:
                self._progress(done, len(keys))


def rolling_pairs(tokenizer: Any, text: str, *, longest: int) -> list[TokenPair]:
    """lm-eval's disjoint windows over a text, at most ``longest`` tokens read in each.

    Unlike lm-eval 0.4.13, the start tokens of a tokenizer that adds some stand in front of every window, are there once, and
    are not predicted: there a BOS follows a BOS, and all windows but the first have none. Where a tokenizer adds none, the
    windows are lm-eval's, and the first token of the text follows the BOS, or else the end token.

    Raises:
        ValueError: a tokenizer with none of these.
    """
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    start = list(start_tokens(tokenizer))
    prefix = start[-1] if start else start_token(tokenizer)
    if prefix is None:
        raise ValueError(
            "this tokenizer has no start token and no end token, so nothing stands before the first token of a text"
        )
    if longest <= len(start):
        raise ValueError(f"a window of {longest} tokens has no room for a text behind {len(start)} start tokens")
    tokens = encode_prompt(tokenizer, text)[len(start) :]
    rolled = get_rolling_token_windows(tokens, prefix_token=prefix, max_seq_len=longest - len(start), context_len=1)
    first = (*start[:-1],)
    pairs: list[TokenPair] = []
    for context, option in map(make_disjoint_window, rolled):
        pairs.append(TokenPair((*(tuple(start) if pairs else first), *context), tuple(option)))
    return pairs


def as_lm(requests: Requests, member: int) -> Any:
    """One student as an ``lm_eval.api.model.LM``."""
    from lm_eval.api.model import LM

    class StudentLM(LM):
        """Hands every request on; lm-eval gives its arguments as ``Instance.args``."""

        def loglikelihood(self, asked: Any) -> list[tuple[float, bool]]:
            return requests.loglikelihood([one.args for one in asked], member)

        def loglikelihood_rolling(self, asked: Any) -> list[float]:
            return requests.loglikelihood_rolling([one.args[0] for one in asked], member)

        def generate_until(self, asked: Any) -> list[str]:
            return requests.generate_until([one.args for one in asked], member)

    return StudentLM()
