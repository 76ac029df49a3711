"""Training of replacements on the teacher's stream. Import from the files: the configuration is free of torch."""
