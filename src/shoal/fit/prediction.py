"""The record of predicted weights: what the predictor of each map is worth."""

from shoal.fit.lesa import PredictedMap
from shoal.words.records import Record


class Prediction(Record):
    """``predict.json`` of a run folder; ``values_digest`` is that of the file of the values."""

    maps: tuple[PredictedMap, ...]
    values_digest: str = ""
