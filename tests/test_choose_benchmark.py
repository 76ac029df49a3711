"""The benchmark of choosing: cells of sublayers on a GPT-2 are measured, resumed, and printed as tables."""

import json
import sys
from pathlib import Path

import pytest
from world import write_model, write_text

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import choose

SETTINGS = (
    "--tokens",
    64,
    "--judged",
    64,
    "--fit-tokens",
    512,
    "--length",
    16,
    "--draws",
    2,
    "--orders",
    8,
    "--repair",
    "refit",
)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The script on a GPT-2 of four layers."""
    model, text = write_model(tmp_path / "model", family="gpt2", n_layers=4), write_text(tmp_path / "text.jsonl")

    def again(*args):
        out = tmp_path / "choose.json"
        given = ("choose.py", "--model", f"tiny={model}:{text}", "--out", out, *SETTINGS, *args)
        monkeypatch.setattr(sys, "argv", [str(one) for one in given])
        choose.main()
        return json.loads(out.read_text()) if out.exists() else {}

    return again


def test_cells_of_sublayers_of_a_gpt2_are_measured_once(run, capsys):
    """A search, a score, random sets and the correlations: as many parameters go as in the layers of the same ratio."""
    ways = ("greedy kl", "lowest relative_update", "random", "scores")
    for way in ways:
        found = run("--units", "sublayers", "--ratio", 25, "--only", way, "--cells", 1)
    names = [f"tiny | 25 % | sublayers | {way}" for way in ways[:3]] + ["tiny | 0 % | sublayers | scores"]
    assert list(found["cells"]) == names
    for name in names[:3]:
        one = found["cells"][name]
        assert 0 < one["removed"]["parameters"] <= 0.25 + 0.15 and one["kl_repaired"] >= 0
        units = one.get("units") or one["draws"][0]["units"]
        assert units and {unit.partition(".")[0] for unit in units} <= {"attn", "mlp", "layer"}
    assert found["cells"][names[0]]["sets"] > 0 and found["cells"][names[1]]["sets"] == 0
    correlations = found["cells"][names[3]]["correlation"]
    assert {"relative_update", "left_out_kl", "windowed_kl"} <= set(correlations)
    capsys.readouterr()
    assert run("--units", "sublayers", "--ratio", 25, "--only", ways[0], "--cells", 1) == found
    assert capsys.readouterr().out == "", "what stands is not measured again"
    run("--tables")
    assert "tiny, 25 %, sublayers" in capsys.readouterr().out


def test_a_way_that_chooses_by_answers_asks_items_that_are_not_judged_on(run, tmp_path, capsys):
    quiz = tmp_path / "quiz.jsonl"
    items = [{"ctx": f"w{k} w{k + 1}", "choices": [" w1", " w2"], "gold": k % 2} for k in range(6)]
    quiz.write_text("".join(json.dumps(one) + "\n" for one in items))
    asked = ("--units", "layers", "--ratio", 25, "--only", "windowed_task", "--task", quiz, "--items", 4, "--search-task", quiz)
    with pytest.raises(ValueError, match="the last 3 items of quiz are judged on, too"):
        run(*asked, "--search-items", 3)
    (cell,) = run(*asked, "--search-items", 2)["cells"].values()
    assert cell["asked"] == "the last 2 items of quiz.jsonl" and cell["sets"] > 0 and len(cell["tasks"]["quiz"]) == 2
    with pytest.raises(SystemExit):
        run("--only", "windowed_task")
    assert "give --search-task FILE" in capsys.readouterr().err
