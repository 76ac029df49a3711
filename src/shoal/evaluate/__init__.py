"""What was lost and what was won: perplexity, divergence, generations, cost and speed of teacher and student."""

from shoal.evaluate.cost import Cost, cost
from shoal.evaluate.evaluation import Evaluation, Figures, Measured, compare
from shoal.evaluate.generate import Generation, generations
from shoal.evaluate.perplexity import Perplexity, perplexities, perplexity
from shoal.evaluate.speed import Speed, speed
from shoal.evaluate.table import Row, figures_table, generation_table, rows, table

__all__ = [
    "Cost",
    "Evaluation",
    "Figures",
    "Generation",
    "Measured",
    "Perplexity",
    "Row",
    "Speed",
    "compare",
    "cost",
    "figures_table",
    "generation_table",
    "generations",
    "perplexities",
    "perplexity",
    "rows",
    "speed",
    "table",
]
