"""What was lost and what was won: perplexity, divergence, tasks, stability, generations, cost and speed of two models."""
