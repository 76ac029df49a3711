"""Memory and disk of every stage, before anything runs."""
