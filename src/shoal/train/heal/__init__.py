"""Healing: gradient training of a cut model after the cut, with transformers' Trainer and peft; a method is a table line."""
