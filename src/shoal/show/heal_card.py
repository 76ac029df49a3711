"""The model card of a student that was healed by itself: what was trained on what, and what that changed, as measured."""

from collections.abc import Mapping
from typing import Any

from shoal.edits.plan import Plan
from shoal.show import markdown
from shoal.show.card import front_matter, how_to_load, tags_of
from shoal.show.headline import hub_id, source_name
from shoal.show.local_paths import command_for_others, without_folders
from shoal.show.markdown import coded, fenced, words
from shoal.show.table import Table
from shoal.train.heal.result import HealTraining, Merging
from shoal.words.records import Provenance


def heal_card(
    student: str,
    training: HealTraining,
    merging: Merging,
    *,
    figures: Table,
    measured: Provenance,
    has_teacher: bool,
    command: str,
    inherited: Mapping[str, Any],
    plan: Plan | None,
    brings_code: bool,
) -> str:
    """The text of README.md.

    Args:
        student: the checkpoint that was healed.
        figures: before and after.
        measured: the text of the figures, and the model they compare with: the teacher, or the student as it came.
        command: the command line that makes this checkpoint again; empty when there was none.
        inherited: licence and language of the student's own card.
        plan: what made the student, where that is known.
        brings_code: whether the checkpoint needs code that lies beside its weights.
    """
    command, text = command_for_others(command), without_folders(measured.data)
    name, reference = source_name(student), source_name(measured.model)
    facts = {
        "student": coded(name),
        "teacher": f"{coded(reference)}, hash `{measured.model_hash}`" if has_teacher else "none",
        "trained": f"{words(training.method)}, {training.n_trainable:,} parameters, for {coded(training.objective)}",
        "training text": f"{words(without_folders(training.data))}, hash `{training.data_hash}`, {training.n_tokens:,} tokens",
        **_taught(training),
        "step kept": f"{training.best_step} of {training.n_steps}, by {training.decided_by} on text of its own",
        "learning rate": f"{training.lr:.2g}",
        "merged": words(merging.way),
        "evaluation text": f"{words(text)}, hash `{measured.data_hash}`, {measured.n_tokens:,} tokens",
        "seed": str(training.config.seed),
    }
    parts = [
        front_matter(hub_id(measured.model), inherited, tags_of(plan)),
        f"# {words(name)}, healed",
        how_to_load(brings_code=brings_code),
        f"## Figures\n\n{markdown.table(figures)}",
        "## How\n\n" + "\n".join(f"- {what}: {fact}" for what, fact in facts.items()),
        f"## Again\n\n{fenced(command, 'bash')}" if command else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _taught(training: HealTraining) -> dict[str, str]:
    """What stood for the teacher while it taught, where that was not the teacher itself."""
    stood = [str(one) for one in (training.quantised, training.cached) if one is not None]
    return {"taught by": words("; ".join(stood))} if stood else {}
