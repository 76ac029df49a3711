"""Tasks: items with right answers, asked of any model."""
