"""How well two runs of one model agree: distributions of next tokens, greedy text and tokens of awkward texts.

A limit is meaningful only where nothing but the order of sums can differ. A quantised file is therefore judged against what the
engine makes of the uncut file, never by a fixed number. The same holds for a most likely token that is hardly ahead of the
second: it must be the same one, unless the engine moves leads as far on the uncut pair.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

ROUNDING = 1e-6  # of a sum of probabilities in single precision
LIMIT = 1e-4  # KL in nats; a cache in half precision gives 1e-6, a file with one layer too few 2e-2
TIMES_FLOOR = 3.0  # A quantised student may be so many times farther off than the uncut pair.

AWKWARD = (
    "", " ", "  two spaces", "tab\there", "line\nbreak", "line\r\nbreak", "\n\n\n", "1234567890", "3.14159", "1,000,000",
    "a1b2c3", "don't can't we'll I've", "HELLO World", "snake_case camelCase", "x = y[0] + {z: 1}",
    "https://example.org/a?b=c#d", "naïve café", "Größe straße", "Привет, мир", "日本語のテキスト", "안녕하세요", "مرحبا",
    "\U0001f642\U0001f469\u200d\U0001f469\u200d\U0001f467", "a" * 70, "<|end|> </s> [INST]",
)  # fmt: skip


@dataclass(frozen=True)
class Agreement:
    """One engine against a reference.

    Attributes:
        kl, kl_most: KL divergence from the reference, mean and largest of the positions, nats.
        same_top: share of positions with the same most likely token.
        log_difference: largest absolute difference of the log-probability of the reference's most likely token.
        lead_moved: largest change of the lead that the reference's most likely token has over its second, nats.
        lead_lost: largest lead, by the reference, of its most likely token over the engine's; 0 where both are the same
            everywhere.
        n_greedy, n_same_greedy: tokens generated greedily, and those before the first difference.
        n_texts, n_same_texts: texts that both tokenised, and those with the same tokens; None where one has no tokenizer.
    """

    kl: float
    kl_most: float
    same_top: float
    log_difference: float
    lead_moved: float
    lead_lost: float
    n_positions: int
    n_greedy: int
    n_same_greedy: int
    n_texts: int | None = None
    n_same_texts: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))

    def __str__(self) -> str:
        said = f"KL {self.kl:.1e} (most {self.kl_most:.1e}), same top token {self.same_top:.1%} of {self.n_positions}"
        said += f" (leads up to {self.lead_lost:.1e} lost)" if self.lead_lost else ""
        said += f", leads moved by {self.lead_moved:.1e} and log-probability off by {self.log_difference:.1e} at most"
        said += f", {self.n_same_greedy} of {self.n_greedy} greedy tokens"
        return said if self.n_texts is None else f"{said}, {self.n_same_texts} of {self.n_texts} texts tokenised alike"


def compare(
    reference: np.ndarray[Any, Any], found: np.ndarray[Any, Any], said_reference: dict[str, Any], said: dict[str, Any]
) -> Agreement:
    """Compare log-probabilities (positions, vocabulary) and what the engines said.

    Raises:
        ValueError: another number of positions or tokens; no position at which the engine listed its candidates.
    """
    if reference.shape != found.shape:
        raise ValueError(f"distributions of shape {found.shape}, the reference has {reference.shape}; these are not one model")
    listed = ~np.isnan(found).any(-1)
    if not listed.any():
        raise ValueError("the engine listed no distribution at any position; there is nothing to compare")
    p, q = reference[listed].astype(np.float64), found[listed].astype(np.float64)
    raw, q = q, normalised(q)
    gone = ~np.isfinite(q) & (p > -30)  # Candidates that an engine does not list are lost probability, not agreement.
    difference = np.where(np.isfinite(q), p - np.where(np.isfinite(q), q, 0.0), np.where(gone, 30.0, 0.0))
    kl = np.maximum((np.exp(p) * difference).sum(-1), 0.0)  # A value below zero is rounding of the log-probabilities.
    rows, top, theirs = np.arange(len(p)), p.argmax(-1), q.argmax(-1)
    others = p.copy()
    others[rows, top] = -np.inf
    second = others.argmax(-1)
    greedy, mine = said_reference["greedy"], said["greedy"]
    n_same = next((i for i, (a, b) in enumerate(zip(greedy, mine, strict=False)) if a != b), min(len(greedy), len(mine)))
    texts = (said_reference.get("tokens"), said.get("tokens"))
    both = None if None in texts else list(zip(*texts, strict=True))  # type: ignore[arg-type]
    return Agreement(
        kl=float(kl.mean()),
        kl_most=float(kl.max()),
        same_top=float((theirs == top).mean()),
        log_difference=float(np.abs(np.where(np.isfinite(raw), p - raw, difference)[rows, top]).max()),
        lead_moved=float(np.abs(difference[rows, top] - difference[rows, second]).max()),
        lead_lost=float((p[rows, top] - p[rows, theirs]).max()),
        n_positions=len(p),
        n_greedy=len(greedy),
        n_same_greedy=n_same,
        n_texts=None if both is None else len(both),
        n_same_texts=None if both is None else sum(list(a) == list(b) for a, b in both),
    )


def normalised(q: Any) -> Any:
    """Log-probabilities (positions, vocabulary) that sum to 1 where every candidate is listed.

    Engines round them: some list a whole distribution that sums to 1.003, of which a KL would come out below zero. Where
    candidates are missing, what is left out stays lost.
    """
    whole = np.isfinite(q).all(-1, keepdims=True)
    mass = np.logaddexp.reduce(np.where(whole, q, 0.0), axis=-1, keepdims=True)
    return np.where(whole & (np.abs(mass) > ROUNDING), q - mass, q)


def verdict(found: Agreement, *, is_exact: bool, floor: Agreement | None) -> str:
    """``agrees``, ``differs: why``, or ``not judged: why``.

    Args:
        is_exact: both sides hold the same values, in single or half precision.
        floor: of the uncut pair, which says what the format and the engine do without a cut. It is the measure of a quantised
            file, and of tokens that change places in an exact one: a lead that is lost must be no larger than the engine moves
            leads there.
    """
    if found.n_texts is not None and found.n_same_texts != found.n_texts:
        return f"differs: {found.n_texts - (found.n_same_texts or 0)} of {found.n_texts} texts are tokenised otherwise"
    if is_exact:
        noise = 0.0 if floor is None else floor.lead_moved
        if found.kl < LIMIT and (found.same_top == 1.0 or found.lead_lost <= noise):
            return "agrees"
        needed = (
            "all are needed; --uncut TEACHER.gguf says how far leads move without a cut"
            if floor is None
            else f"leads of {found.lead_lost:.1e} are lost, the uncut file moves them by {noise:.1e}"
        )
        return f"differs: KL {found.kl:.1e} (at most {LIMIT:.0e}), same top token {found.same_top:.1%} ({needed})"
    if floor is None:
        return "not judged: the file is quantised; --uncut TEACHER.gguf says what its rounding alone does"
    limit = max(LIMIT, TIMES_FLOOR * floor.kl)
    if found.kl <= limit:
        return "agrees"
    return f"differs: KL {found.kl:.1e}, the uncut file {floor.kl:.1e} (at most {TIMES_FLOOR:.0f} times that)"
