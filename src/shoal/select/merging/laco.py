"""LaCo: groups of layers become one, from the top down, while the student stays similar. arXiv 2402.11187.

With layers l .. l+C-1 of the student merged, the student is run; where its similarity to the source is above the threshold the
merge stays and the next group begins I layers lower, else one layer lower. A group may hold layers that were merged before.
"""

from shoal.select.merging.merge_config import MergeConfig
from shoal.select.merging.row_trial import MergeRules, Row, Track, n_gone


def laco(row: Row, config: MergeConfig, rules: MergeRules, threshold: float) -> Track:
    """Merge until the front is reached or no more may go; the last group is smaller where less than a group is left to go."""
    at = len(row) - config.group
    while at >= 0 and n_gone(row) < rules.most:
        size = min(config.group, len(row) - at, rules.most - n_gone(row) + 1)
        candidate = rules.joined(row, at, at + size)
        if candidate is not None and (yield candidate) > threshold:
            row = candidate
            at = min(at - config.interval, len(row) - config.group)
        else:
            at -= 1
    return row
