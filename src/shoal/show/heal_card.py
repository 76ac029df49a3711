"""The model card of a student that was healed by itself: what was trained on what, and what that changed, as measured."""

from collections.abc import Mapping
from typing import Any

import yaml

from shoal.evaluate.evaluation import Evaluation
from shoal.measure.oracle import Quality
from shoal.show.headline import source_name
from shoal.show.markdown import coded, fenced, words
from shoal.train.heal.result import HealTraining, Merging


def heal_card(
    student: str,
    training: HealTraining,
    merging: Merging,
    *,
    before: Quality,
    evaluation: Evaluation,
    command: str,
    inherited: Mapping[str, Any],
) -> str:
    """The text of README.md.

    Args:
        student: the checkpoint that was healed.
        before: its closeness to the teacher, on the text of ``evaluation``, which is of the healed one.
        command: the command line that makes this checkpoint again; empty when there was none.
        inherited: licence and language of the student's own card.
    """
    name, teacher = source_name(student), source_name(evaluation.provenance.model)
    metadata = {
        "base_model": teacher,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["shoal", "depth-pruning", "layer-pruning", "model-compression"],
        **inherited,
    }
    after = evaluation.quality
    repaired = f"{100 * (1 - after.kl / before.kl):.1f} %" if before.kl else "–"
    ours, theirs = evaluation.teacher.perplexity.value, evaluation.student.perplexity.value
    rows = (
        ("KL to the teacher, nats per token", "0", f"{before.kl:.4f}", f"{after.kl:.4f}"),
        ("top-1 agreement with the teacher", "100 %", f"{100 * before.agreement:.1f} %", f"{100 * after.agreement:.1f} %"),
        ("perplexity, window by window", f"{ours:.2f}", "", f"{theirs:.2f}"),
        ("share of the KL that healing took away", "", "", repaired),
    )
    figures = "\n".join(
        ["| | teacher | before | healed |", "|---|---:|---:|---:|", *(f"| {' | '.join(row)} |" for row in rows)]
    )
    source = evaluation.provenance
    facts = {
        "student": coded(name),
        "teacher": f"{coded(teacher)}, hash `{source.model_hash}`",
        "trained": f"{words(training.method)}, {training.n_trainable:,} parameters, for {coded(training.objective)}",
        "training text": f"{words(training.data)}, hash `{training.data_hash}`, {training.n_tokens:,} tokens",
        **_taught(training),
        "step kept": f"{training.best_step} of {training.n_steps}, by {training.decided_by} on text of its own",
        "learning rate": f"{training.lr:.2g}",
        "merged": words(merging.way),
        "evaluation text": f"{words(source.data)}, hash `{source.data_hash}`, {source.n_tokens:,} tokens",
        "seed": str(training.config.seed),
    }
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---",
        f"# {words(name)}, healed",
        "A stock checkpoint of its architecture; load it with `AutoModelForCausalLM.from_pretrained`.",
        f"## Figures\n\n{figures}",
        "## How\n\n" + "\n".join(f"- {what}: {fact}" for what, fact in facts.items()),
        f"## Again\n\n{fenced(command, 'bash')}" if command else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _taught(training: HealTraining) -> dict[str, str]:
    """What stood for the teacher while it taught, where that was not the teacher itself."""
    stood = [str(one) for one in (training.quantised, training.cached) if one is not None]
    return {"taught by": words("; ".join(stood))} if stood else {}
