"""Agreement is what its formulas say; a file is proved in engines that are there, and said not to be where they are not."""

import json
import os

import numpy as np
import pytest
from gguf_world import tiny_llama
from test_export_table import PLAIN, plain_model, run_folder, zeroed

from shoal.edits.drop import Drop
from shoal.export import prove as prove_module
from shoal.export.agreement import AWKWARD, Agreement, compare, verdict
from shoal.export.engines.table import ENGINES, HERE
from shoal.export.exporter import Options
from shoal.export.gguf.cut_file import cut_gguf
from shoal.export.prove import RECORD, prove
from shoal.export.table import export

SAID = {"greedy": [5, 6, 7, 8], "tokens": [[1], [2, 3]], "ids": [0] * 9, "version": "1"}


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def test_a_model_agrees_with_itself():
    p = log_softmax(np.random.default_rng(0).standard_normal((5, 11)))
    found = compare(p, p, SAID, SAID)
    assert (found.kl, found.kl_most, found.log_difference, found.same_top) == (0.0, 0.0, 0.0, 1.0)
    assert (found.n_same_greedy, found.n_same_texts, found.n_texts) == (4, 2, 2)


def test_kl_is_that_of_the_formula():
    random = np.random.default_rng(0)
    p, q = (log_softmax(random.standard_normal((7, 13))) for _ in range(2))
    naive = [sum(np.exp(a) * (a - b) for a, b in zip(x, y, strict=True)) for x, y in zip(p, q, strict=True)]
    found = compare(p, q, SAID, SAID)
    assert found.kl == pytest.approx(np.mean(naive)) and found.kl_most == pytest.approx(max(naive))
    assert found.same_top == np.mean(p.argmax(-1) == q.argmax(-1))
    assert found.log_difference == pytest.approx(max(abs(x[x.argmax()] - y[x.argmax()]) for x, y in zip(p, q, strict=True)))


def test_candidates_that_an_engine_does_not_list_count_against_it():
    p = log_softmax(np.zeros((2, 4)))
    q = p.copy()
    q[0, 3] = -np.inf
    assert compare(p, q, SAID, SAID).kl > 1


def test_positions_that_an_engine_cannot_list_are_left_out():
    p = log_softmax(np.random.default_rng(0).standard_normal((3, 4)))
    q = p.copy()
    q[1] = np.nan
    found = compare(p, q, SAID, SAID)
    assert (found.kl, found.n_positions, found.same_top) == (0.0, 2, 1.0)
    with pytest.raises(ValueError, match="nothing to compare"):
        compare(p, np.full_like(p, np.nan), SAID, SAID)


@pytest.mark.parametrize(("greedy", "n"), [([5, 6, 7, 8], 4), ([5, 9, 7, 8], 1), ([9], 0), ([5, 6], 2)])
def test_greedy_tokens_count_until_they_differ(greedy, n):
    p = log_softmax(np.zeros((1, 3)))
    assert compare(p, p, SAID, {**SAID, "greedy": greedy, "tokens": None}).n_same_greedy == n


def test_another_vocabulary_is_another_model():
    with pytest.raises(ValueError, match="not one model"):
        compare(np.zeros((1, 3)), np.zeros((1, 4)), SAID, SAID)


def agreement(kl=0.0, same_top=1.0, **more):
    return Agreement(
        kl=kl, kl_most=kl, same_top=same_top, log_difference=0.0, n_positions=9, n_greedy=4, n_same_greedy=4, **more
    )


JUDGED = [
    (agreement(), True, None, "agrees"),
    (agreement(kl=2e-4), True, None, "differs: KL 2.0e-04"),
    (agreement(same_top=0.9), True, None, "differs: .*90.0%"),
    (agreement(kl=5.0), False, None, "not judged: .*--uncut"),
    (agreement(kl=0.02), False, agreement(kl=0.01), "agrees"),
    (agreement(kl=0.04), False, agreement(kl=0.01), "differs: KL 4.0e-02, the uncut file 1.0e-02"),
    (agreement(n_texts=25, n_same_texts=24), True, None, "differs: 1 of 25 texts"),
]


@pytest.mark.parametrize(("found", "is_exact", "floor", "wanted"), JUDGED, ids=lambda one: str(one)[:25])
def test_verdicts(found, is_exact, floor, wanted):
    import re

    assert re.match(wanted, verdict(found, is_exact=is_exact, floor=floor))


def test_there_are_25_awkward_texts():
    assert len(AWKWARD) == len(set(AWKWARD)) == 25


@pytest.mark.parametrize("name", ENGINES)
def test_runners_stand_alone(name):
    text = (HERE / ENGINES[name].script).read_text()
    assert "import shoal" not in text and "from shoal" not in text and "def main(" in text


@pytest.fixture
def student(tmp_path):
    """A student's folder and its file in single precision."""
    tiny_llama(4).save_pretrained(tmp_path / "m")
    return tmp_path / "m", export("gguf", tmp_path / "m", tmp_path / "m.gguf", Options(kind="f32")).path


def test_transformers_reads_the_file_as_the_student(student, shoal, monkeypatch, tmp_path):
    monkeypatch.setenv("SHOAL_ENGINES", str(tmp_path / "none"))
    folder, file = student
    code, out, err = shoal("verify", file, "--against", folder, "--engine", "transformers", "--json")
    proof = json.loads(out)["proofs"][0]
    assert code == 0 and proof["verdict"] == "agrees" and proof["found"]["kl"] == 0.0 and proof["found"]["n_same_greedy"] == 16
    written = json.loads(file.with_name(file.name + RECORD).read_text())
    assert written["engines"]["transformers"]["version"] == proof["version"] and written["against"] == "m"


def test_an_engine_that_is_not_there_is_said_with_the_command(student, shoal, monkeypatch, tmp_path):
    monkeypatch.setenv("SHOAL_ENGINES", str(tmp_path / "none"))
    folder, file = student
    proofs = prove(file, folder, [ENGINES["llama.cpp"]])
    assert proofs[0].verdict.startswith("not proved here: python -m venv .prove/llama.cpp") and proofs[0].version is None
    code, out, err = shoal("verify", file, "--against", folder, "--engine", "llama.cpp")
    assert code == 2 and "not proved here" in out and "pip install xllamacpp==" in err
    assert not file.with_name(file.name + RECORD).exists()


WRONG = [
    (("{file}", "--against", "{folder}", "--engine", "llama"), "unknown engine 'llama'"),
    (("{folder}", "--against", "{folder}", "--engine", "llama.cpp"), "llama.cpp reads no such thing"),
    (("{file}", "--against", "nowhere"), "nowhere is neither a GGUF file nor a checkpoint folder"),
    (("nowhere", "--against", "{folder}"), "nowhere is neither"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=lambda one: str(one)[-30:])
def test_wrong_requests_are_one_line(words, message, student, shoal):
    code, out, err = shoal("verify", *(word.format(file=student[1], folder=student[0]) for word in words))
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1


def test_an_engine_that_fails_is_one_line(student, monkeypatch):
    def broken(*args, **options):
        import subprocess

        return subprocess.CompletedProcess(args, 1, "", "Traceback\n  deep\nRuntimeError: no such layer\n")

    monkeypatch.setattr(prove_module.subprocess, "run", broken)
    with pytest.raises(ValueError, match="cannot be run by transformers: RuntimeError: no such layer"):
        prove(student[1], student[0], [ENGINES["transformers"]])


def installed(name):
    there = ENGINES[name].interpreter() is not None if os.environ.get("SHOAL_ENGINES") else False
    return pytest.mark.skipif(not there, reason=f"needs {name} in an environment of its own: make prove")


def proof(file, against, engine, **options):
    return prove(file, against, [ENGINES[engine]], **options)[0]


@pytest.mark.slow
@installed("llama.cpp")
class TestLlamaCpp:
    """What llama.cpp makes of files, against transformers (``make prove``)."""

    def test_the_bundled_model_cut_and_grafted(self, tmp_path):
        from pathlib import Path

        import shoal as package

        bundled = Path(package.__file__).parent / "assets" / "books-16l"
        run = run_folder(bundled, tmp_path / "run", Drop(indices=(5, 6)), n_layers=16)
        teacher = export("gguf", bundled, tmp_path / "teacher.gguf", Options(kind="f32")).path
        kept = [layer for layer in range(16) if layer not in (5, 6)]
        cut = cut_gguf(teacher, kept, tmp_path / "cut.gguf").path
        grafted = export("gguf", run, tmp_path / "grafted.gguf", Options(like=teacher)).path
        written = export("gguf", run, tmp_path / "written.gguf", Options(kind="f32")).path
        for file in (cut, grafted, written):
            found = proof(file, run / "model", "llama.cpp")
            assert found.verdict == "agrees" and found.found.n_same_greedy == 16 and found.found.n_same_texts == 25, file
        wrong = cut_gguf(teacher, kept[:-1], tmp_path / "wrong.gguf").path
        assert proof(wrong, run / "model", "llama.cpp").is_wrong, "a layer too few is seen"

    def test_a_quantised_cut_against_the_noise_of_its_format(self, tmp_path):
        from pathlib import Path

        import shoal as package

        bundled = Path(package.__file__).parent / "assets" / "books-16l"
        teacher = export("gguf", bundled, tmp_path / "teacher.gguf", Options(kind="q4_1")).path
        cut = cut_gguf(teacher, [*range(5), *range(7, 16)], tmp_path / "cut.gguf").path
        found = proof(cut, cut, "llama.cpp", uncut=teacher)
        assert found.verdict == "agrees" and found.floor.kl > 0

    @pytest.mark.parametrize("family", sorted(PLAIN))
    def test_families_written_here(self, family, tmp_path):
        plain_model(family, tmp_path / "m")
        file = with_single_bytes("gguf", tmp_path / "m", tmp_path / "m.gguf")
        assert proof(file, tmp_path / "m", "llama.cpp").verdict == "agrees"

    def test_windows_that_follow_no_period(self, tmp_path):
        model = plain_model("gemma3_text", tmp_path / "m")
        model.config.sliding_window = 4
        model.save_pretrained(tmp_path / "m")
        teacher = with_single_bytes("gguf", tmp_path / "m", tmp_path / "teacher.gguf")
        run = run_folder(tmp_path / "m", tmp_path / "run", Drop(indices=(1, 4)))
        cut = cut_gguf(teacher, (0, 2, 3, 5), tmp_path / "cut.gguf").path
        assert proof(cut, run / "model", "llama.cpp").verdict == "agrees"

    def test_layers_without_attention_or_mlp(self, tmp_path):
        tiny_llama(6).save_pretrained(tmp_path / "even")
        folder = zeroed(tmp_path / "even", tmp_path / "uneven")
        file = with_single_bytes("blocks", folder, tmp_path / "m.gguf")
        assert proof(file, folder, "llama.cpp").verdict == "agrees"


def with_single_bytes(form, folder, file):
    """Export a folder with single bytes as tokens, because llama.cpp serves no model without a tokenizer; compared by ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    n = json.loads((folder / "config.json").read_text())["vocab_size"]
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(f"<{i}>" for i in range(n))][: n - 1]
    tokenizer = Tokenizer(models.BPE(vocab={**{t: i for i, t in enumerate(tokens)}, "<end>": n - 1}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    done = export(form, folder, file, Options(kind="f32"))
    (folder / "tokenizer.json").unlink()
    return done.path


@pytest.mark.slow
@pytest.mark.parametrize("engine", [pytest.param(name, marks=installed(name)) for name in ("transformers-4", "mlx")])
def test_a_folder_in_other_engines(engine, tmp_path):
    from pathlib import Path

    import shoal as package

    bundled = Path(package.__file__).parent / "assets" / "books-16l"
    run = run_folder(bundled, tmp_path / "run", Drop(indices=(5, 6)), n_layers=16)
    found = proof(run / "model", run / "model", engine)
    assert found.verdict == "agrees" and found.found.n_same_greedy == 16
