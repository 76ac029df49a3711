"""What was lost and what was won: perplexity, divergence, tasks, stability, generations, cost and speed of two models."""

from shoal.evaluate.answer_files import load_answers
from shoal.evaluate.answered import TaskAnswers, answered
from shoal.evaluate.benchmark import Benchmark, Kept, TaskFigures, TaskResult, compare_tasks, task_figures
from shoal.evaluate.bootstrap import Interval
from shoal.evaluate.choice import ItemScores, TaskScores, choice_answers, score_task
from shoal.evaluate.comparison import Compared, Comparison
from shoal.evaluate.comparison_table import comparison_notes, comparison_table
from shoal.evaluate.cost import Cost, cost
from shoal.evaluate.disagreement import disagreement, kept_shares
from shoal.evaluate.evaluation import Evaluation, Figures, Measured, closeness, compare
from shoal.evaluate.exact_match import write_answers
from shoal.evaluate.generate import Generation, generations
from shoal.evaluate.harness import answer_with_harness
from shoal.evaluate.harness_source import HarnessTask, file_task, harness_tasks
from shoal.evaluate.last_word import last_word_answers
from shoal.evaluate.perplexity import Perplexity, perplexities, perplexity
from shoal.evaluate.positions import ByPosition, Positions
from shoal.evaluate.speed import Speed, speed
from shoal.evaluate.stability import Answer, Answers, Flip, Stability, official_stability, stability
from shoal.evaluate.table import Row, figures_table, generation_table, position_table, rows, table
from shoal.evaluate.task_table import (
    accuracy_table,
    agreement_table,
    flip_table,
    stability_notes,
    stability_table,
    task_notes,
    task_table,
)
from shoal.evaluate.tasks import Task, TaskItem, load_task

__all__ = [
    "Answer",
    "Answers",
    "Benchmark",
    "ByPosition",
    "Compared",
    "Comparison",
    "Cost",
    "Evaluation",
    "Figures",
    "Flip",
    "Generation",
    "HarnessTask",
    "Interval",
    "ItemScores",
    "Kept",
    "Measured",
    "Perplexity",
    "Row",
    "Speed",
    "Positions",
    "Stability",
    "Task",
    "TaskAnswers",
    "TaskFigures",
    "TaskItem",
    "TaskResult",
    "TaskScores",
    "accuracy_table",
    "agreement_table",
    "answer_with_harness",
    "answered",
    "choice_answers",
    "closeness",
    "compare",
    "compare_tasks",
    "comparison_notes",
    "comparison_table",
    "cost",
    "disagreement",
    "figures_table",
    "file_task",
    "flip_table",
    "generation_table",
    "generations",
    "harness_tasks",
    "kept_shares",
    "last_word_answers",
    "load_answers",
    "load_task",
    "official_stability",
    "perplexities",
    "perplexity",
    "position_table",
    "rows",
    "score_task",
    "speed",
    "stability",
    "stability_notes",
    "stability_table",
    "table",
    "task_figures",
    "task_notes",
    "task_table",
    "write_answers",
]
