"""The sections of a report, one file each: values of a run folder in, a section or None out."""
