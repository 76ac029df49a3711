"""What both models write: greedy continuations of the same prompts, side by side."""

import os

from shoal.evaluate.generate import Generation
from shoal.show.html import Html, tag
from shoal.show.report.run_data import RunData, Section


def written(data: RunData) -> Section | None:
    if data.evaluation is None or not data.evaluation.generations:
        return None
    note = "Greedy: the most likely token at every step, with the model's own cache. What both write alike is set in grey."
    if any(one.is_chat for one in data.evaluation.generations):
        note = f"Each prompt is a user's turn, written through the model's chat template. {note}"
    cards = [_card(one) for one in data.evaluation.generations]
    return Section(
        "generations", "What they write", "evaluation.json", (tag("p", note), tag("div", cards, class_="generations"))
    )


def _card(one: Generation) -> Html:
    alike = len(os.path.commonprefix([one.teacher, one.student]))
    same = "The same to the end" if one.is_identical else f"{one.n_agreed} of {one.n_tokens} tokens before the first difference"
    return tag(
        "article",
        tag("blockquote", one.prompt),
        tag("div", _text("Teacher", one.teacher, alike), _text("Student", one.student, alike), class_="pair"),
        tag("p", same, class_="note"),
    )


def _text(who: str, text: str, alike: int) -> Html:
    return tag("div", tag("h3", who), tag("p", tag("span", text[:alike], class_="alike"), text[alike:], class_="generated"))
