"""The cliff: where a curve of loss against removed share breaks, UIDL's sharp transition (arXiv 2403.17887).

Definition. Two straight lines, each fitted by least squares to the points on its side of a gap between two neighbouring points
(two points or more on a side, any jump between the lines), the gap where the squared residual is least. There is a cliff where

* the two lines leave less than a cubic polynomial through all points, each residual divided by its degrees of freedom (the
  lines have four coefficients and the place of the gap, the cubic has four coefficients), and
* the loss behind the gap, over the teacher's, is on average at least twice what the first line foretells there.

A smooth curve, however steep, is met by the cubic and has no cliff; a step or a sharp bend is not. Both are asked of every
resample (samples or items drawn anew, all points together); the cliff is found when at least ``LEVEL`` of them agree, and its
interval covers the gaps that they chose. Infinite losses end the curve.
Shapes: P points, R resamples, K gaps.
"""

import numpy as np

from shoal.evaluate.curve.ratio_curve import Cliff, RatioCurve
from shoal.evaluate.intervals import LEVEL

FEWEST = 6
"""Points: two lines and their gap are five choices."""
STEEPER = 2.0
"""How many times the loss that the first line foretells."""
ROUNDING = 1e-16
"""Residuals below this share of the curve's own square are rounding: a polynomial then *is* the curve."""


def cliff_of(curve: RatioCurve, *, method: str) -> Cliff:
    """The cliff of a curve, or why there is none."""
    finite_P = np.isfinite(curve.loss_P) & np.isfinite(curve.loss_RP).all(0)
    n_points = len(finite_P) if finite_P.all() else int(np.argmin(finite_P))
    if n_points < FEWEST:
        why = f"{n_points} points; a break needs {FEWEST}, the teacher counted"
        return Cliff(method=method, of=curve.of, found=False, why_not=why)
    share_P, loss_RP = curve.share_P[:n_points], curve.loss_RP[:, :n_points]
    found_R, gap_R, _ = _breaks(share_P, loss_RP)
    (found,), (gap,), (rise,) = _breaks(share_P, curve.loss_P[None, :n_points])
    support = float(found_R.mean())
    if not found or support < LEVEL:
        why = "a smooth curve describes the points as well, or the loss does not double"
        return Cliff(method=method, of=curve.of, found=False, support=support, why_not=why)
    tail = (1 - LEVEL) / 2
    low = np.quantile(share_P[gap_R[found_R]], tail, method="lower")
    high = np.quantile(share_P[gap_R[found_R] + 1], 1 - tail, method="higher")
    return Cliff(
        method=method,
        of=curve.of,
        found=True,
        support=support,
        last=float(share_P[gap]),
        first=float(share_P[gap + 1]),
        last_n=curve.n_P[gap],
        first_n=curve.n_P[gap + 1],
        low=min(float(low), float(share_P[gap])),
        high=max(float(high), float(share_P[gap + 1])),
        rise=float(rise),
    )


def _breaks(share_P: np.ndarray, loss_RP: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per row: whether there is a break, the last point before it, and the mean rise behind it over the first line."""
    n_points = len(share_P)
    x_P = (share_P - share_P[0]) / (share_P[-1] - share_P[0])
    gaps = range(1, n_points - 2)
    centred_RP = loss_RP - loss_RP.mean(1, keepdims=True)
    left = np.stack([_residual(centred_RP[:, : gap + 1], x_P[: gap + 1], 1) for gap in gaps], 1)
    right = np.stack([_residual(centred_RP[:, gap + 1 :], x_P[gap + 1 :], 1) for gap in gaps], 1)
    lines_RK = left + right
    best_R = lines_RK.argmin(1)
    cubic_R = _residual(centred_RP, x_P, 3)
    foretold_RK = np.stack([_foretold(loss_RP, x_P, gap) for gap in gaps], 1)
    behind_RK = np.stack([(loss_RP[:, gap + 1 :] - loss_RP[:, :1]).mean(1) for gap in gaps], 1)
    rows = np.arange(len(loss_RP))
    foretold_R, behind_R = foretold_RK[rows, best_R], behind_RK[rows, best_R]
    sharper_R = lines_RK[rows, best_R] / (n_points - 5) < cubic_R / (n_points - 4)
    is_curve_R = cubic_R <= ROUNDING * np.square(centred_RP).sum(1)
    steeper_R = (behind_R > 0) & (behind_R >= STEEPER * foretold_R)
    return sharper_R & ~is_curve_R & steeper_R, best_R + 1, behind_R - foretold_R


def _residual(loss_RP: np.ndarray, x_P: np.ndarray, degree: int) -> np.ndarray:
    """(R,) sum of squares that a polynomial of this degree leaves."""
    basis, _ = np.linalg.qr(np.vander(x_P, degree + 1))
    return np.asarray(np.square(loss_RP - (loss_RP @ basis) @ basis.T).sum(1))


def _foretold(loss_RP: np.ndarray, x_P: np.ndarray, gap: int) -> np.ndarray:
    """(R,) mean loss over the teacher's that the line through the points before the gap has at the places behind it."""
    line, *_ = np.linalg.lstsq(np.vander(x_P[: gap + 1], 2), (loss_RP[:, : gap + 1] - loss_RP[:, :1]).T, rcond=None)
    return np.asarray((np.vander(x_P[gap + 1 :], 2) @ line).mean(0))
