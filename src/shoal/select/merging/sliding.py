"""Sliding layer merging: a window from the top that grows while the student stays similar. arXiv 2502.19159.

The window starts with the two top layers that may take part, grows downwards by one layer while the merged student's
similarity is above the threshold, and is merged when it is no longer; then the next window starts with the layer that broke it.
The released program never merges a window that is still open at the front; here it is merged.
"""

from shoal.select.merging.merge_config import MergeConfig
from shoal.select.merging.row_trial import MergeRules, Row, Track, n_gone


def sliding(row: Row, config: MergeConfig, rules: MergeRules, threshold: float) -> Track:
    """Slide to the front, or until no more may go."""
    high, merged = len(row) - 1, None
    low = high - 1
    while low >= 0:
        candidate = rules.joined(row, low, high + 1)
        if candidate is not None and (yield candidate) > threshold:
            merged = candidate
            if n_gone(candidate) == rules.most:
                break
            low -= 1
        elif merged is not None:
            row, merged, high, low = merged, None, low, low - 1
        else:
            high, low = high - 1, low - 1
    return row if merged is None else merged
