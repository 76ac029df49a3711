"""GGUF, the format of llama.cpp: files cut, grafted and written without leaving their block formats."""
