"""What a healing did, as a record that is a file: its settings, its curve, and which step was kept."""

from shoal.train.heal.config import HealConfig
from shoal.words.records import Provenance, Record


class HealPoint(Record):
    """One validation.

    Attributes:
        step, tokens: trained so far.
        lr: of the last step before it; 0 at the start.
        loss: mean of the objective over the steps since the validation before; None at the start.
        nll: next-token negative log-likelihood of the selection text, in nats per token.
        kl: KL(teacher || student) there, in nats per token; None without a teacher.
    """

    step: int
    tokens: int
    lr: float
    loss: float | None
    nll: float
    kl: float | None

    def measure(self, name: str) -> float:
        """``kl`` or ``nll``."""
        found = self.kl if name == "kl" else self.nll
        assert found is not None
        return found


class RateTrial(Record):
    """A short run at one learning rate; ``measure`` is where it ended, None where it diverged."""

    lr: float
    measure: float | None
    n_tokens: int


class CacheFigures(Record):
    """What a cache of the teacher's k likeliest tokens leaves out, measured on selection text with the student at its start.

    Attributes:
        n_bytes: on disk.
        objective, objective_cached: the objective with all of the teacher's logits, and with the k.
    """

    k: int
    n_bytes: int
    objective: float
    objective_cached: float

    def __str__(self) -> str:
        return (
            f"the {self.k} likeliest tokens on disk, {self.n_bytes / 1e6:,.1f} MB; the objective reads "
            f"{self.objective_cached:.4f} with them and {self.objective:.4f} with all"
        )


class QuantisedFigures(Record):
    """How far a teacher in few bits is from the teacher as its checkpoint is, on selection text.

    Attributes:
        n_bytes: of its weights in memory; ``n_bytes_whole``: of those of the checkpoint.
        kl: KL(teacher || teacher in few bits), nats per token.
    """

    bits: int
    n_bytes: int
    n_bytes_whole: int
    kl: float

    def __str__(self) -> str:
        return (
            f"{self.bits} bits, {self.n_bytes / 1e6:,.1f} MB for {self.n_bytes_whole / 1e6:,.1f} MB; "
            f"{self.kl:.4f} nats per token from the teacher as its checkpoint is"
        )


class HealTraining(Record):
    """A finished training.

    Attributes:
        method: what was trained, for people.
        decided_by: ``kl`` or ``nll``: the measure on the selection text that chose the step; lower is better.
        best_step: the step that was kept; 0 is the student as it came.
        n_steps, n_tokens: that were trained; fewer than planned where patience ended.
        n_trainable, n_parameters: trained parameters and all of the student, tied ones once.
        tokens_per_second: of training in this process's last session, validations left out.
        peak_bytes: most memory of one process: of its card, else of the process.
        ranks: of each layer's adapters, where there are any.
        cached: what the teacher's cache leaves out, where there was one.
        quantised: what the teacher's few bits move, where it had them.
        rates: the short runs of ``lr: auto``.
    """

    method: str
    objective: str
    decided_by: str
    best_step: int
    n_steps: int
    n_tokens: int
    n_trainable: int
    n_parameters: int
    lr: float
    tokens_per_second: float
    peak_bytes: int
    data: str
    data_hash: str
    config: HealConfig
    curve: tuple[HealPoint, ...]
    ranks: tuple[int, ...] = ()
    rates: tuple[RateTrial, ...] = ()
    cached: CacheFigures | None = None
    quantised: QuantisedFigures | None = None

    def point(self, step: int) -> HealPoint:
        """The validation at a step."""
        return next(one for one in self.curve if one.step == step)

    @property
    def start(self) -> HealPoint:
        return self.curve[0]

    @property
    def best(self) -> HealPoint:
        return self.point(self.best_step)

    def __str__(self) -> str:
        first, kept = (one.measure(self.decided_by) for one in (self.start, self.best))
        return (
            f"{self.method}, {self.n_trainable:,} parameters, for {self.objective}: {self.n_tokens:,} tokens at {self.lr:.2g}, "
            f"{self.decided_by} {first:.4f} -> {kept:.4f} at step {self.best_step} of {self.n_steps}"
        )


class MergeTrial(Record):
    """One way with what it measured; ``lost`` is how much worse the deciding measure became, in nats per token."""

    way: str
    nll: float
    kl: float | None
    lost: float


class Merging(Record):
    """How the trained values entered the checkpoint.

    Attributes:
        way: that was taken: one of ``train.heal.merge.MERGES``, or ``none`` where there were no adapters to merge.
        nll, kl: of the model as it was trained.
        trials: every way that was measured.
    """

    way: str
    nll: float
    kl: float | None
    trials: tuple[MergeTrial, ...] = ()

    @property
    def taken(self) -> MergeTrial | None:
        return next((one for one in self.trials if one.way == self.way), None)


class Drift(Record):
    """What training on text alone changed, on the evaluation slice: the student as it came, and healed.

    Attributes:
        perplexity_before, perplexity: of the text, window by window.
        kl: KL(as it came || healed), nats per token; agreement: share of tokens where both find the same one most likely.
    """

    provenance: Provenance
    perplexity_before: float
    perplexity: float
    kl: float
    agreement: float
