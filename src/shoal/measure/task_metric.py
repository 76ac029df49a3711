"""The metric that asks tasks, by name alone: models answer items above this floor (``shoal.evaluate.tasks.task_loss``)."""

TASK = "task"

TASK_ABOUT = "1 - accuracy on the items of tasks, the mean over tasks"
