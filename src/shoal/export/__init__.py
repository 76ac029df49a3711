"""Formats of serving engines: GGUF files cut and written, folders for engines with uneven layers, each verified."""
