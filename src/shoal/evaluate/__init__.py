"""What was lost and what was won: perplexity, divergence, tasks, stability, generations, cost and speed of two models."""

from shoal.evaluate.answer_files import load_answers
from shoal.evaluate.benchmark import Benchmark, TaskResult, compare_tasks
from shoal.evaluate.bootstrap import Interval
from shoal.evaluate.choice import ItemScores, TaskScores, choice_answers, score_task
from shoal.evaluate.cost import Cost, cost
from shoal.evaluate.evaluation import Evaluation, Figures, Measured, closeness, compare
from shoal.evaluate.generate import Generation, generations
from shoal.evaluate.last_word import last_word_answers
from shoal.evaluate.perplexity import Perplexity, perplexities, perplexity
from shoal.evaluate.positions import ByPosition, Positions
from shoal.evaluate.speed import Speed, speed
from shoal.evaluate.stability import Answer, Answers, Flip, Stability, official_stability, stability
from shoal.evaluate.table import Row, figures_table, generation_table, position_table, rows, table
from shoal.evaluate.task_table import flip_table, stability_notes, stability_table, task_notes, task_table
from shoal.evaluate.tasks import Task, TaskItem, load_task

__all__ = [
    "Answer",
    "Answers",
    "Benchmark",
    "ByPosition",
    "Cost",
    "Evaluation",
    "Figures",
    "Flip",
    "Generation",
    "Interval",
    "ItemScores",
    "Measured",
    "Perplexity",
    "Row",
    "Speed",
    "Positions",
    "Stability",
    "Task",
    "TaskItem",
    "TaskResult",
    "TaskScores",
    "choice_answers",
    "closeness",
    "compare",
    "compare_tasks",
    "cost",
    "figures_table",
    "flip_table",
    "generation_table",
    "generations",
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
    "task_notes",
    "task_table",
]
