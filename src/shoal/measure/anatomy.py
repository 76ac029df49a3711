"""What the stream looks like from layer to layer: norms, and where the sinks rise and fall."""

from shoal.words.records import Record


class Anatomy(Record):
    """Statistics per boundary 0..L, means over samples of the mean over a sample's tokens.

    Attributes:
        norm_rest, norm_sink: mean ‖x_l‖ over tokens that are not sinks, and over sinks; with standard errors over samples.
        n_massive: tokens above 20 times the median norm of their sample at that boundary.
        n_sinks: tokens that are sinks (first of their sample, or massive at some boundary).
        n_tokens: real tokens counted, sinks included.
        n_zero: real tokens left out because their stream is exactly zero at some boundary.
        n_samples: samples seen.
    """

    norm_rest: tuple[float, ...]
    norm_rest_stderr: tuple[float, ...]
    norm_sink: tuple[float, ...]
    norm_sink_stderr: tuple[float, ...]
    n_massive: tuple[int, ...]
    n_sinks: int
    n_tokens: int
    n_zero: int
    n_samples: int
