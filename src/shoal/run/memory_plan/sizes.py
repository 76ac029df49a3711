"""What stages count their bytes by, before anything is loaded: sizes of the model and of the text, and the machine's memory.

A stage states what it takes in a few coarse terms (weights, states, temporaries, its own); what each repair, replacement,
observer and way of healing takes is stated by its entry. The sum is an upper bound, not an account: terms below a percent are
left out, and a margin covers what the heap keeps. ``benchmarks/memory.py`` and ``gpu.py`` compare it with what a run takes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from shoal.recipes.recipe import Recipe
from shoal.run.job import LONGEST_DEFAULT, TOKENS_PER_BATCH, samples_of
from shoal.run.memory_plan.machine import N_DIVERGENCE, Machine
from shoal.words.model_shape import ModelShape
from shoal.words.records import Record

MARGIN = 0.3
"""Of all that is counted, on top. The peaks of benchmarks/results/memory.json lie 4 % to 43 % below their bounds."""

TRAINED_BYTES = 4 + 4 + 8 + 2 * 4
"""Per trained parameter: an fp32 master, its gradient, two moments of Adam; what would be saved, and the best of it so far."""


class StageNeed(Record):
    """Bytes of one stage, at most.

    Attributes:
        memory: of the whole process at the stage's peak; ``parts`` add up to it.
        host: where that is a card's memory, bytes of the machine's; most of it while the model is opened.
        disk: what the stage writes and leaves; ``scratch``: what it writes and removes.
        refusal: why it will not run with these layers in memory; else empty.
    """

    stage: str
    memory: int
    parts: dict[str, int]
    host: int = 0
    disk: int = 0
    scratch: int = 0
    refusal: str = ""


@dataclass(frozen=True)
class Sizes:
    """A run, as far as it can be told without its weights.

    Attributes:
        n_removed: layers that the budget removes, net; ``n_cut``: those that are cut, replaced ones included.
        held: layers in memory; None: all.
    """

    recipe: Recipe
    shape: ModelShape
    machine: Machine
    n_removed: int
    n_cut: int
    held: int | None = None

    @property
    def length(self) -> int:
        """Tokens of a sample."""
        return self.recipe.text.length or min(self.shape.window or LONGEST_DEFAULT, LONGEST_DEFAULT)

    @property
    def n_batch(self) -> int:
        """Tokens of a batch."""
        return max(1, TOKENS_PER_BATCH // self.length) * self.length

    @property
    def n_kept(self) -> int:
        """Layers of the student."""
        return self.shape.n_layers - self.n_removed

    @property
    def weights(self) -> int:
        """Bytes of the model as it is held; of layers on disk one more is read ahead."""
        shape, held = self.shape, self.held
        return shape.other_bytes + (shape.n_layers if held is None else min(shape.n_layers, held + 1)) * shape.layer_bytes

    @property
    def student(self) -> int:
        """Bytes of the student's checkpoint."""
        return self.shape.other_bytes + self.n_kept * self.shape.layer_bytes

    @property
    def second_model(self) -> int:
        """Bytes of the student opened beside the model; where layers are on disk it is read layer by layer, too."""
        return self.student if self.held is None else 0

    def tokens(self, slice: str) -> int:
        """Tokens of the slice ``calibration``, ``selection`` or ``evaluation``."""
        return samples_of(self.recipe.text, slice, self.length) * self.length

    def states(self, n_streams: int, n_tokens: int) -> int:
        """States of one batch, or of all tokens where layers are on disk and the states wait between them."""
        return self.all_states(n_streams, min(n_tokens, self.n_batch) if self.held is None else n_tokens)

    def all_states(self, n_streams: int, n_tokens: int) -> int:
        """States of so many streams and tokens."""
        return n_streams * n_tokens * self.shape.hidden * self.shape.itemsize

    def layer_work(self, n_tokens: int) -> int:
        """Temporaries of a layer, in the model's dtype, and what its maps or those of the head take in float32."""
        shape, n = self.shape, min(n_tokens, self.n_batch)
        most = self.machine.widened if shape.itemsize == 2 else 0
        widest = max(shape.ffn, shape.vocabulary)
        widened = 4 * (min(most, widest * shape.hidden) + min(most, n * (widest + shape.hidden)))
        return n * (8 * shape.hidden + 3 * shape.ffn) * shape.itemsize + widened

    def judging(self, n_tokens: int) -> int:
        """A batch through a layer, and then the logits of teacher and student with the chunks of their divergence."""
        n, vocabulary = min(n_tokens, self.n_batch), self.shape.vocabulary
        chunks = min(self.machine.logits, N_DIVERGENCE * n * vocabulary * 4)
        return self.layer_work(n) + 2 * n * vocabulary * self.shape.itemsize + chunks

    def gradients(self, n_tokens: int, n_layers: int, *, logits: bool) -> int:
        """What a step of training keeps for its gradients, fp32: of every layer it runs, and of the logits."""
        shape = self.shape
        graph = n_layers * n_tokens * (16 * shape.hidden + 6 * shape.ffn) * 4
        chunks = min(self.machine.logits, N_DIVERGENCE * n_tokens * shape.vocabulary * 4)
        return graph + (3 * n_tokens * shape.vocabulary * shape.itemsize + chunks if logits else 0)

    def need(
        self,
        stage: str,
        entries: Mapping[str, int] | None = None,
        *,
        states: int = 0,
        disk: int = 0,
        refusal: str = "",
        **parts: int,
    ) -> StageNeed:
        """The bound of a stage from what it takes beside process and weights.

        Args:
            entries: parts by the names of entries.
            states: beyond a share of the free memory they wait on disk; a card's in the machine's memory first.
        """
        machine = self.machine
        kept = min(states, machine.spill)
        taken = {"weights": self.weights, "states": kept, **parts, **(entries or {})}
        taken = {"process": machine.base, **taken, "margin": int(MARGIN * sum(taken.values()))}
        on_host, host = 0, 0
        if machine.host is not None:
            on_host = min(states - kept, machine.host.spill)
            host = machine.host.base + (self.weights if self.held is None else self.shape.layer_bytes) + on_host
        return StageNeed(
            stage=stage,
            memory=sum(taken.values()),
            parts=taken,
            host=host,
            disk=disk,
            scratch=states - kept - on_host,
            refusal=refusal,
        )


def largest(*needs: StageNeed) -> StageNeed:
    """The bound of a stage that does several things one after the other."""
    return max(needs, key=lambda one: one.memory)
