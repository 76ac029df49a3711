"""The model card of a compressed checkpoint: README.md with the metadata block that the Hugging Face Hub reads.

Everything on it comes from the plan and the evaluation; nothing is claimed that was not measured.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from shoal.edits.plan import Plan
from shoal.edits.prune import Prune
from shoal.evaluate.evaluation import Evaluation
from shoal.evaluate.generate import Generation
from shoal.prune.thin_result import ThinResult, speed_said
from shoal.select.verdict import spread_said
from shoal.show.clean_text import clean
from shoal.show.figure_tables import figures, figures_note
from shoal.show.headline import Fact, Headline, became, headline, hub_id, source_name
from shoal.show.local_paths import command_for_others, sentence_for_others, without_folders
from shoal.show.markdown import coded, fenced, table, words
from shoal.show.plan_tables import candidates, zeroed_said
from shoal.show.zero_tables import by_layer, by_role
from shoal.train.train_result import TrainResult
from shoal.words.records import Provenance
from shoal.words.structure import inserted
from shoal.words.types import spans_of
from shoal.words.yaml_text import parse_yaml

INHERITED = ("license", "license_name", "license_link", "language")
N_GENERATIONS = 3  # The card shows these; evaluation.json has all of them.


def card(
    plan: Plan,
    evaluation: Evaluation,
    *,
    recipe_name: str,
    command: str,
    citations: Sequence[str] = (),
    trained: Sequence[TrainResult] = (),
    thinned: ThinResult | None = None,
    healed: str = "",
    not_healed: str = "",
    inherited: Mapping[str, Any] | None = None,
) -> str:
    """The text of README.md.

    Args:
        plan: what was done.
        evaluation: what was measured.
        recipe_name: name of the recipe that was run.
        command: the command line that makes this checkpoint again; empty when there was none.
        citations: the papers of the method, as BibTeX.
        trained: how each replacement was trained.
        thinned: the record of its zeros, where weights were set to zero.
        healed: how the whole student was trained behind that, for people; empty where it was not.
        not_healed: why it was not, where it might have been.
        inherited: metadata of the source's card (:func:`inherited_metadata`); without a licence there the card names none.
    """
    name = source_name(plan.source)
    said = headline(plan, evaluation, thinned=thinned)
    sections = (
        front_matter(hub_id(plan.source), inherited or {}, tags_of(plan)),
        f"# {words(name)}, {became(plan)}\n\n{_summary(said)}",
        how_to_load(brings_code=plan.brings_code, more=_of_replacements(plan)),
        _figures(evaluation, zeroed_said(plan)),
        _removed(plan, said.changed) if plan.is_changed or thinned is None else "",
        _zeros(thinned),
        _generations(evaluation.generations),
        _reproduce(plan, name, recipe_name, command, is_trained=bool(healed)),
        _provenance(evaluation, trained, healed, not_healed),
        _limits(evaluation),
        _citations(citations),
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def inherited_metadata(folder: Path) -> dict[str, Any]:
    """Licence and language from the metadata block of the README.md in a model's folder; empty where there is none."""
    readme = Path(folder) / "README.md"
    if not readme.is_file():
        return {}
    block = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", readme.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        found = parse_yaml(block[1], str(readme)) if block else None
    except ValueError:
        # The card is somebody else's and may hold dates that do not exist or brackets without end. A card without a licence is
        # better than no checkpoint.
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: found[key] for key in INHERITED if found.get(key) and _is_plain(found[key])}


def _is_plain(value: Any) -> bool:
    """A text or a list of texts, as the hub writes licences and languages; anything else is left to its owner."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


# -- sections ------------------------------------------------------------------------------------------------------------


def front_matter(base_model: str | None, inherited: Mapping[str, Any], tags: Sequence[str]) -> str:
    """The metadata block.

    Args:
        base_model: hub id of the model that this one was made from. None where it has none: the hub would take the name of a
            local folder for somebody's model.
    """
    metadata: dict[str, Any] = {"base_model": clean(base_model)} if base_model is not None else {}
    metadata |= {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": list(tags)}
    metadata.update({key: inherited[key] for key in INHERITED if key in inherited})
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---"


def tags_of(plan: Plan | None) -> tuple[str, ...]:
    """The words by which the hub finds a student: those of its cut, where it has one; None is a student of no known plan."""
    if plan is None:
        return ("shoal",)
    if plan.removed_layers or plan.removed_units:
        return ("shoal", "depth-pruning", "layer-pruning", "model-compression")
    if inserted(plan.structure):
        return ("shoal", "depth-up-scaling")
    return ("shoal", "pruning") if any(isinstance(edit, Prune) for edit in plan.edits) else ("shoal",)


def _summary(said: Headline) -> str:
    parts = [("It costs", said.cost), ("It buys", said.gain)]
    lines = [f"- {what} {'; '.join(_fact(one) for one in facts)}." for what, facts in parts if facts]
    return "\n".join([said.summary, "", *lines]) if lines else said.summary


def _fact(one: Fact) -> str:
    return f"**{one.label} {one.value}** ({one.note})" if one.note else f"**{one.label} {one.value}**"


def how_to_load(*, brings_code: bool, more: str = "") -> str:
    """The section on loading.

    Args:
        brings_code: whether code lies beside the weights.
        more: a sentence about a checkpoint that needs no such code.
    """
    said = f"A stock checkpoint of its architecture; no other code is needed.{more}"
    if brings_code:
        said = (
            "The layers are stock; what was put in place of removed ones is code in `modeling_shoal.py`, which comes with the "
            "weights and needs only torch and transformers. Read it, then allow it:"
        )
    code = f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or the id it was uploaded under
model = AutoModelForCausalLM.from_pretrained(folder{", trust_remote_code=True" if brings_code else ""})
tokenizer = AutoTokenizer.from_pretrained(folder)"""
    return f"## How to load\n\n{said}\n\n{fenced(code, 'python')}"


def _of_replacements(plan: Plan) -> str:
    """What stock layers that stand for a replacement hold."""
    if all(slot.runs != "module" for slot in plan.structure):
        return ""
    return " Layers that hold a replacement have an attention that adds nothing (its output map is zero)."


def _figures(evaluation: Evaluation, more: str) -> str:
    parts = ("## Figures", table(figures(evaluation)), figures_note(evaluation), more)
    return "\n\n".join(part for part in parts if part)


def _removed(plan: Plan, heading: str) -> str:
    lines = [f"## {heading}", "", f"Layer numbers are those of the source. In short: {plan}."]
    details = [f"- {edit}" for edit in plan.edits if not isinstance(edit, Prune)]  # Zeros have a section of their own.
    lines += ["", *details] if details else []
    lines += ["", f"How it was chosen: {words(plan.method)}"] if plan.method else []
    lines += ["", f"Choice {spread_said(plan.spread)}."] if plan.spread else []
    return "\n".join([*lines, *_candidates(plan)])


def _zeros(found: ThinResult | None) -> str:
    if found is None:
        return ""
    parts = ("## Zeros", f"{words(str(found))}. {speed_said(found.config)}", table(by_role(found)))
    return "\n\n".join((*parts, table(by_layer(found))))


def _candidates(plan: Plan) -> list[str]:
    measured = [one for one in plan.candidates if one.kl is not None]
    if not measured:
        return []
    found = replace(candidates(measured, n_layers=plan.n_layers), notes=())
    return ["", f"{found.caption}; compared on text that is not in the figures above:", "", table(found)]


def _generations(generated: Sequence[Generation]) -> str:
    if not generated:
        return ""
    parts = ["## Greedy answers, through the chat template" if generated[0].is_chat else "## Greedy generations"]
    for one in generated[:N_GENERATIONS]:
        parts += [
            f"Prompt, then teacher, then student ({one.n_agreed} of {one.n_tokens} tokens before the first difference):",
            fenced(one.prompt),
            fenced(one.teacher),
            fenced(one.student),
        ]
    return "\n\n".join(parts)


def _reproduce(plan: Plan, name: str, recipe_name: str, command: str, *, is_trained: bool) -> str:
    text = f"## How to make it again\n\nRecipe {words(recipe_name)}"
    command = command_for_others(command)
    text += f":\n\n{fenced(command, 'bash')}" if command else "; `recipe.yaml` of the run folder has every option."
    if plan.is_pure_removal and plan.removed_layers:
        slices = [{"sources": [{"model": name, "layer_range": [span.start, span.stop]}]} for span in spans_of(plan.kept_layers)]
        content = {"merge_method": "passthrough", "slices": slices}
        recipe = yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
        what = "The cut before it was trained, for mergekit" if is_trained else "The same cut for mergekit"
        text += f"\n\n{what} (upper bounds are exclusive):\n\n{fenced(recipe.rstrip(), 'yaml')}"
    return text


def _provenance(evaluation: Evaluation, trained: Sequence[TrainResult], healed: str, not_healed: str) -> str:
    source = evaluation.provenance
    texts = [
        f"{words(without_folders(one.data))}, hash `{one.data_hash}`, {one.n_tokens:,} tokens for {', '.join(one.trained)}"
        for one in trained
    ]
    facts = {
        "teacher": f"{coded(source_name(source.model))}, hash `{source.model_hash}`",
        "evaluation text": f"{words(without_folders(source.data))}, hash `{source.data_hash}`",
        "samples": f"{source.n_samples:,} of {source.length} tokens, {source.n_tokens:,} tokens in all{_of_text(source)}",
        "training text": "; ".join(texts),
        "healed": words(healed),
        "not healed": words(sentence_for_others(not_healed)),
        "seed": str(source.seed),
        "dtype": source.dtype,
        "versions": ", ".join(f"{package} {version}" for package, version in sorted(source.versions.items())),
    }
    return "## Provenance\n\n" + "\n".join(f"- {name}: {fact}" for name, fact in facts.items() if fact)


def _of_text(source: Provenance) -> str:
    """The share of the text that was read, where it is known."""
    if source.share is None:
        return ""
    return f", from {'less than ' * source.text_goes_on}{100 * source.share:.3g} % of the text"


def _limits(evaluation: Evaluation) -> str:
    text = words(without_folders(evaluation.provenance.data))
    return (
        "## Limits\n\n"
        f"- The figures hold for the text they were measured on ({text}). Other text, other languages "
        "and other tasks can lose more.\n"
        "- Perplexity does not tell what happened to reasoning, facts or long contexts. Test the checkpoint on your own task "
        "before you rely on it.\n"
        "- The licence, the biases and the limits of the source model still apply."
    )


def _citations(entries: Sequence[str]) -> str:
    return "## Citations\n\n" + fenced("\n\n".join(entries), "bibtex") if entries else ""
