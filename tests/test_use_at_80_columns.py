"""What a new user sees in 80 columns and in a log file: no figure cut, every stage counted, and what to do next."""

import re
from pathlib import Path

import pytest

TEXT = ("--length", 16)


def table_lines(out):
    """Lines of tables: those between a rule and the next blank line, with the heading above the rule."""
    lines = out.splitlines()
    for at, line in enumerate(lines):
        if set(line.strip()) == {"─"} and at:
            yield lines[at - 1]
            for row in lines[at:]:
                if not row.strip():
                    break
                yield row


@pytest.mark.slow  # Six verbs in a row, each of which has a law of its own.
def test_the_walk_from_a_scan_to_a_report(small, shoal, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = ("--text", small["text"], *TEXT)
    asked = {
        "scan": ("scan", small["model"], *text, "--samples", 8, "--out", "run"),
        "plan": ("plan", "run", "--drop", 2, "--fit-tokens", 500),
        "apply": ("apply", "run/plan.json", "--out", "student"),
        "sublayers": ("apply", small["model"], "--layers", "mlp:3,attn:2", "--out", "zeroed"),
        "eval": ("eval", "student", "--teacher", small["model"], *text, "--samples", 8, "--no-speed"),
        "compress": (
            "compress", small["model"], *text, "--samples", 8, "--drop", 2, "--guard", 2, "--fit-tokens", 500, "--no-speed",
            "--out", "done",
        ),
        "curve": ("curve", small["model"], *text, "--samples", 8, "--methods", "none,uidl-simple", "--points", 2, "--out", "c"),
        "memory": ("plan", small["model"], "--memory", "--drop", "25%kv"),
    }  # fmt: skip
    seen = {}
    for name, args in asked.items():
        code, out, err = shoal(*args)
        assert code == 0, err
        seen[name] = (out, err)
        wide = [line for line in table_lines(out) if len(line) > 80 or "…" in line]
        assert wide == [], (name, wide)
    out, log = seen["compress"]
    stages = [tuple(map(int, found)) for found in re.findall(r"stage (\d+) of (\d+), ", log)]
    assert len(set(stages)) >= 4 and stages == sorted(stages) and len({n for _, n in stages}) == 1
    assert "'auto', here 'sweep'" in out and "What next:" in out and "Takes about" in out
    assert "attention" in seen["sublayers"][0] and "MLP" in seen["sublayers"][0]
    assert re.search(r"stage 2 of 6, candidate 1 of 2, repair: .*\n(.*\n)*.*candidate 2 of 2, repair: ", log)
    assert not re.search(r"Takes about 0[.]0", "".join(out for out, _ in seen.values()))
    for name, then in {"scan": "shoal plan run ", "plan": "shoal apply run/plan.json ", "apply": "shoal eval student "}.items():
        assert then in seen[name][0].split("What next:")[1], name
    assert {path.name for path in Path("c").iterdir()} >= {"curve.json", "report.html"}
    assert seen["curve"][0].count("no cliff") <= 1
