"""What the benchmark of answers from GGUF files makes of its rows."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import gguf_chat as chat


def row(right, size, *, group="", kind="", said="a"):
    answers = dict.fromkeys(chat.PROMPTS, f"{said} | b\nc")
    made = {"left": 0.5, "making": {"cpu_seconds": 1.0, "peak_mib": 80.0}} if group else {}
    return (
        {"group": group, "type": kind, "bytes": size, "right": [1] * right + [0] * (60 - right), "said": [said] * 60}
        | made
        | {"answers": answers}
    )


def test_the_smallest_file_that_keeps_a_students_answers_is_named():
    """At most a tenth fewer right answers than in half precision; what another student answers does not count."""
    kinds = {"f16": (20, 200), "q8_0": (20, 118), "q5_1": (18, 92), "q5_0": (17, 86), "q4_1": (19, 83)}
    rows = {"as it is": row(50, 98)}
    rows |= {f"A, {kind}": row(*found, group="A", kind=kind) for kind, found in kinds.items()}
    rows |= {"B, q8_0": row(60, 10, group="B", kind="q8_0")}
    assert chat.smallest(rows) == [("A", "A, q4_1")]
    rows["A, q4_1"]["right"] = [1] * 17 + [0] * 43
    assert chat.smallest(rows) == [("A", "A, q5_1")]
    lines = chat.table(rows)
    assert "| A, q5_1 | 0.0 | 18 | 60 | 0.50 | 1.0 s, 80 MiB |" in lines and "| as it is | 0.0 | 50 |  |  |  |" in lines
    assert "| A, q5_1 | a \\| b c |" in lines and "| A, q5_0 | a \\| b c |" not in lines


def test_without_a_row_the_table_says_so():
    assert chat.table({}) == ["No run is recorded yet."]
