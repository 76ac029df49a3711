"""`make prove`: every row by itself, nothing run twice, an engine that is not there is a row with the reason."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from shoal.export.agreement import Agreement
from shoal.export.engines.table import ENGINES, UNFINISHED
from shoal.export.proof_record import Proof

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "prove.py"


@pytest.fixture
def prove_script(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("prove_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "prove_script", module)
    spec.loader.exec_module(module)
    monkeypatch.setenv("SHOAL_ENGINES", str(tmp_path / "engines"))
    monkeypatch.setattr(module, "BUNDLED", tmp_path / "nothing")
    return module


@pytest.fixture
def run(prove_script, monkeypatch, tmp_path):
    def run(*words):
        places = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "rows.json")]
        monkeypatch.setattr(sys, "argv", ["prove.py", *map(str, words), *places])
        code = prove_script.main()
        return code, json.loads((tmp_path / "rows.json").read_text())["rows"]

    return run


def agreeing(asked):
    """In place of engines: says who was asked for what."""

    def prove(path, folder, engines, **options):
        for engine in engines:
            asked.append((Path(path).name, engine.name))
            if engine.interpreter() is None:
                yield Proof(engine=engine.name, verdict=f"not proved here: {engine.missing}")
            else:
                found = Agreement(
                    kl=0.0, kl_most=0.0, same_top=1.0, log_difference=0.0, lead_moved=0.0, lead_lost=0.0,
                    n_positions=1, n_greedy=0, n_same_greedy=0,
                )  # fmt: skip
                yield Proof(engine=engine.name, verdict="agrees", version=engine.version, found=found)

    return prove


def test_rows_are_written_one_by_one_and_not_run_again(prove_script, run, monkeypatch, capsys, tmp_path):
    asked, seen = [], tmp_path / "student"
    seen.mkdir()
    (seen / "config.json").write_text("{}")
    (seen / "weights").write_bytes(b"12345")
    monkeypatch.setattr(prove_script, "prove", agreeing(asked))
    monkeypatch.setattr(prove_script, "student", lambda name, kind, model, work: seen)
    monkeypatch.setattr(prove_script, "made", lambda artefact, folder, stem: seen)
    mark = tmp_path / "engines" / "vllm" / UNFINISHED
    mark.parent.mkdir(parents=True)
    mark.write_text("vllm cannot be installed: no package for this machine\n")
    code, rows = run("--engines", "transformers,vllm,llama.cpp")
    assert code == 0 and len(rows) == len(asked) == 3 * 5 + 2
    assert all(one["bytes"] == 7 for one in rows)
    absent = {one["engine"]: one["verdict"] for one in rows if one["version"] is None}
    assert absent["vllm"] == "not proved here: vllm cannot be installed: no package for this machine"
    assert absent["llama.cpp"].endswith("install llama.cpp")
    asked.clear()
    assert run("--engines", "transformers,vllm,llama.cpp")[0] == 0
    assert {engine for _, engine in asked} == {"vllm", "llama.cpp"}, "what is proved stands, what was not there is tried again"

    # What was proved where the engine is installed stays, and another version of it is a row to run.
    content = json.loads((tmp_path / "rows.json").read_text())
    for row in content["rows"]:
        row["version"], row["verdict"] = ("0.1" if row["engine"] == "transformers" else "9"), "agrees"
    (tmp_path / "rows.json").write_text(json.dumps(content))
    asked.clear()
    _, rows = run("--engines", "transformers,vllm,llama.cpp")
    assert {engine for _, engine in asked} == {"transformers"} and all(one["version"] for one in rows)

    # An engine that failed, for want of memory or a network perhaps, is asked again; one that says something else is not.
    content["rows"] = [row | {"version": ENGINES[row["engine"]].version} for row in rows if row["engine"] == "transformers"]
    content["rows"][0]["verdict"], content["rows"][1]["verdict"] = "fails: no room", "differs"
    (tmp_path / "rows.json").write_text(json.dumps(content))
    asked.clear()
    run("--engines", "transformers")
    assert len(asked) == 1
    said = capsys.readouterr().out
    assert "vllm: not proved here (4 of 4 rows are of an earlier run): vllm cannot be installed: no package" in said
    assert "17 rows: 6 run now, 0 wrong" in said
    content["rows"][0]["verdict"] = "differs: KL"
    (tmp_path / "rows.json").write_text(json.dumps(content))
    assert run("--engines", "vllm")[0] == 1, "a wrong row fails the command"


def test_the_page_has_the_table_of_the_rows(prove_script):
    lines = list(prove_script.table(json.loads(prove_script.RESULTS.read_text())["rows"]))
    assert "\n".join(lines).strip() in prove_script.PAGE.read_text(), "python benchmarks/prove.py --page writes it"


def test_an_unknown_engine_is_named(run):
    with pytest.raises(ValueError, match="unknown engine 'vlmm'"):
        run("--engines", "vlmm")


@pytest.mark.slow
def test_the_students_of_a_model_as_deep_as_smollm2(run, monkeypatch, prove_script, tmp_path):
    """Plain, repaired and with sublayers out, made by the command and proved in transformers; killed in between, it goes on."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1, vocab_size=4096)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes, num_hidden_layers=30, max_position_embeddings=256))
    model.save_pretrained(tmp_path / "deep")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(prove_script.ROOT / "src" / "shoal" / "assets" / "books-16l" / name, tmp_path / "deep")
    monkeypatch.setattr(prove_script, "wanted", only_smollm2(prove_script.wanted))
    code, rows = run(tmp_path / "deep", "--engines", "transformers")
    assert code == 0 and len(rows) == 6 and all(one["verdict"] == "agrees" for one in rows)
    work = tmp_path / "work"
    assert json.loads((work / "smollm2-cut" / "config.json").read_text())["num_hidden_layers"] == 23
    assert json.loads((work / "smollm2-repaired" / "model" / "config.json").read_text())["num_hidden_layers"] == 23
    assert not load_file(work / "smollm2-sublayers" / "model.safetensors")["model.layers.13.self_attn.o_proj.weight"].any()
    assert ENGINES["transformers"].version == rows[0]["version"]


def only_smollm2(wanted):
    return lambda models, engines: (one for one in wanted(models, engines) if one[0] == "smollm2")
