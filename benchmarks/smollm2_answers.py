"""What the students of ``benchmarks/smollm2.py`` answer: tasks of choice, chats, instructions, short sums."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from smollm2_bench import AFTER_A_REPAIR, Bench

TASKS = {"arc_easy_test": 300, "piqa_val": 300, "sciq_val": 300, "copa_val": 100, "lambada_openai_test": 300}
PROMPTS = (
    "What is the capital of Germany?",
    "Name three colours.",
    "Write one sentence about the sea.",
    "What is 7 plus 5?",
    "Why do people sleep?",
)


def shown(bench: Bench) -> dict[str, Any]:
    from shoal.engine.student import TEACHER

    made = [method for method in AFTER_A_REPAIR if f"fit {method} 25 %" in bench.results]
    return {"teacher": TEACHER, **{method: bench.student(method) for method in made}}


def task(name: str) -> Callable[[Bench], dict[str, Any]]:
    """Which items each student has right (options per character, last words where they are likeliest), and its stability."""

    def cell(bench: Bench) -> dict[str, Any]:
        from shoal.evaluate.stability import stability
        from shoal.evaluate.tasks.choice import score_task
        from shoal.evaluate.tasks.task_files import load_task

        students = shown(bench)
        one = load_task(bench.options.bench / f"{name}.jsonl").head(TASKS[name])
        tokenizer = bench.opened.need_tokenizer()
        scores = score_task(bench.view, one, tokenizer=tokenizer, students=list(students.values()), window=1024)
        found = dict(zip(students, scores, strict=True))
        weighed = {label: one.weighed or one.counted for label, one in found.items()}
        compared = {label: stability(weighed["teacher"], one) for label, one in weighed.items()}
        return {
            "items": len(one.items),
            "right": {label: [int(item.is_right) for item in (one.norm or one.counted).items] for label, one in found.items()},
            "stability": {
                label: {"value": one.stability.value, "low": one.stability.low, "high": one.stability.high}
                for label, one in compared.items()
            },
        }

    return cell


def every_item(name: str) -> Callable[[Bench], dict[str, Any]]:
    """Which of all items of a task the teacher, the plain cut and the command's default have right, and its stability."""

    def cell(bench: Bench) -> dict[str, Any]:
        from shoal.engine.student import TEACHER
        from shoal.evaluate.stability import stability
        from shoal.evaluate.tasks.choice import score_task
        from shoal.evaluate.tasks.task_files import load_task

        one, tokenizer = load_task(bench.options.bench / f"{name}.jsonl"), bench.opened.need_tokenizer()
        plain = bench.plain(bench.results["criteria"]["25 %"]["cosine (LLM-Streamline)"])
        teacher, cut = score_task(bench.view, one, tokenizer=tokenizer, students=[TEACHER, plain], window=1024)
        (default,) = score_task(bench.default, one, tokenizer=tokenizer, students=[TEACHER], window=1024)
        found = {"teacher": teacher, "plain cut": cut, "default": default}
        sure = teacher.weighed or teacher.counted
        return {
            "items": len(one.items),
            "right": {
                label: [int(item.is_right) for item in (made.norm or made.counted).items] for label, made in found.items()
            },
            "stability": {
                label: stability(sure, made.weighed or made.counted).model_dump(mode="json", include={"value", "low", "high"})
                for label, made in found.items()
            },
        }

    return cell


@torch.no_grad()
def answers(bench: Bench, student: Any, prompts: Sequence[str], n_tokens: int) -> list[str]:
    """Greedy answers through the model's chat template, of a student or of the view of a checkpoint."""
    from shoal.engine.view import DecoderView
    from shoal.evaluate.generate import greedy_tokens, model_of

    tokenizer = bench.opened.need_tokenizer()
    model = student.model if isinstance(student, DecoderView) else model_of(bench.view, student)
    said = []
    for prompt in prompts:
        asked = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        found = greedy_tokens(model, ids["input_ids"][0], max_new_tokens=n_tokens)
        said.append(tokenizer.decode(found, skip_special_tokens=True).strip())
    return said


def chat(share: str, methods: Sequence[str]) -> Callable[[Bench], dict[str, Any]]:
    """Greedy answers to five prompts."""

    def cell(bench: Bench) -> dict[str, Any]:
        from shoal.engine.student import TEACHER

        students = {"teacher": TEACHER, **{name: bench.student(name, share) for name in methods}}
        said = {label: answers(bench, student, PROMPTS, 40) for label, student in students.items()}
        by_prompt = {prompt: {label: said[label][at] for label in said} for at, prompt in enumerate(PROMPTS)}
        return {"max_new_tokens": 40, "answers": by_prompt}

    return cell


def instructions(label: str, make: Callable[[Bench], Any]) -> Callable[[Bench], dict[str, Any]]:
    """Short questions with exact answers: right where the answer stands in the first 16 new tokens as a word of its own."""

    def cell(bench: Bench) -> dict[str, Any]:
        rows = [json.loads(line) for line in (Path(__file__).parent / "instructions.jsonl").read_text().splitlines()]
        said = answers(bench, make(bench), [row["prompt"] for row in rows], 16)
        right = [int(is_right(text, row["answers"])) for text, row in zip(said, rows, strict=True)]
        return {"items": len(rows), "right": right, "said": said}

    return cell


def is_right(said: str, accepted: Sequence[str]) -> bool:
    words = " ".join("".join(letter if letter.isalnum() else " " for letter in said.lower()).split())
    return any(f" {one.lower()} " in f" {words} " for one in accepted)


def teacher(_: Bench) -> Any:
    from shoal.engine.student import TEACHER

    return TEACHER


def default(bench: Bench) -> Any:
    return bench.default


def chat_with_default(bench: Bench) -> dict[str, Any]:
    """What the command's default answers to the five prompts."""
    return {"max_new_tokens": 40, "answers": dict(zip(PROMPTS, answers(bench, bench.default, PROMPTS, 40), strict=True))}


def sums() -> list[tuple[str, str]]:
    """Prompts and answers: all sums and differences of two digits whose result is not below 0, four solved ones in front."""
    solved = "2 + 3 = 5\n7 - 4 = 3\n6 + 8 = 14\n9 - 9 = 0\n"
    found = [(f"{solved}{a} + {b} =", str(a + b)) for a in range(1, 10) for b in range(1, 10)]
    return found + [(f"{solved}{a} - {b} =", str(a - b)) for a in range(1, 10) for b in range(1, a + 1)]


@torch.no_grad()
def arithmetic(bench: Bench) -> dict[str, Any]:
    """Which sums each student gets: greedy, as plain text, the first number that it writes."""
    from shoal.evaluate.generate import greedy_texts, model_of

    tokenizer, asked = bench.opened.need_tokenizer(), sums()
    prompts = [tokenizer(prompt)["input_ids"] for prompt, _ in asked]
    right: dict[str, list[int]] = {}
    for label, student in shown(bench).items():
        said = dict(greedy_texts(model_of(bench.view, student), tokenizer, prompts, max_new_tokens=4, stop=("\n",)))
        firsts = [next(iter(said[i].split()), "") for i in range(len(asked))]
        right[label] = [int(first == answer) for first, (_, answer) in zip(firsts, asked, strict=True)]
    return {"items": len(asked), "right": right}
