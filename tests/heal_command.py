"""What tests of the verb ``heal`` share: its options for a small world, and what a refusal looks like."""

FEW = ("--tokens", 256, "--batch", 4, "--length", 16)


def healing(cut, *more):
    """Arguments of a short healing of a cut student."""
    return (cut["run"], "--text", cut["text"], *FEW, *more)


def one_line(code, err, said):
    """A refusal: exit code 2, one line on stderr, which says this; a slow machine may have told how far the work was before."""
    assert code == 2, err
    lines = [line for line in err.strip().splitlines() if not line.startswith("[")]
    assert len(lines) == 1 and said in lines[0], err
