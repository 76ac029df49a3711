"""Whether an error says that memory ran out, of the machine or of a card, in the words of torch, its solvers or the system."""

SAID = ("not enough memory", "out of memory", "ALLOC_FAILED", "can't allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """True for what Python, torch on a CPU, torch on a card and its solvers raise."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or isinstance(error, RuntimeError)
        and any(words in str(error) for words in SAID)
    )
