"""Agreement is what its formulas say; a file is proved in engines that are there, and said not to be where they are not."""

import dataclasses
import json
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from gguf_world import tiny_llama
from report_world import write_run

from shoal.engine.source import fingerprint
from shoal.export import prove as prove_module
from shoal.export.agreement import AWKWARD, Agreement, compare, verdict
from shoal.export.engines import install as install_module
from shoal.export.engines.table import ENGINES, HERE
from shoal.export.exporter import Options
from shoal.export.proof_record import RECORD, Proof, ProofRecord, records_in
from shoal.export.prove import prove
from shoal.export.table import export
from shoal.run.proving import keep
from shoal.run.stages.report import read_run, write_report

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


@pytest.mark.parametrize("shift", [3e-3, -3e-3])
def test_a_distribution_that_sums_to_more_or_less_than_one_has_the_kl_of_its_proportions(shift):
    random = np.random.default_rng(0)
    p, q = (log_softmax(random.standard_normal((7, 13))) for _ in range(2))
    exact, found = compare(p, q, SAID, SAID), compare(p, q + shift, SAID, SAID)
    assert (found.kl, found.kl_most) == pytest.approx((exact.kl, exact.kl_most), rel=1e-9) and found.same_top == exact.same_top
    assert compare(p, p + shift, SAID, SAID).kl == pytest.approx(0.0, abs=1e-12)
    assert compare(p, p + shift, SAID, SAID).log_difference == pytest.approx(abs(shift))


def test_leads_moved_and_lost_are_those_of_the_two_most_likely_tokens():
    """Planted: the first row keeps its order and its lead grows by 0.2; the second one loses a lead of 0.1."""
    p = log_softmax(np.array([[2.0, 1.0, 0.0, -1.0], [1.0, 1.1, 0.0, -1.0]]))
    q = log_softmax(np.array([[2.2, 1.0, 0.0, -1.0], [1.15, 1.1, 0.5, -1.0]]))
    found = compare(p, q + 0.01, SAID, SAID)  # A common shift moves no lead.
    assert (found.lead_moved, found.lead_lost, found.same_top) == (pytest.approx(0.2), pytest.approx(0.1), 0.5)
    assert compare(p, p, SAID, SAID).lead_lost == compare(p, p, SAID, SAID).lead_moved == 0.0


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
    known = dict(log_difference=0.0, lead_moved=0.0, lead_lost=0.0, n_positions=9, n_greedy=4, n_same_greedy=4)
    return Agreement(kl=kl, kl_most=kl, same_top=same_top, **(known | more))


JUDGED = [
    (agreement(), True, None, "agrees"),
    (agreement(kl=2e-4), True, None, "differs: KL 2.0e-04"),
    (agreement(same_top=0.9, lead_lost=2e-3), True, None, "differs: .*90.0%.*all are needed; --uncut"),
    (agreement(same_top=0.9, lead_lost=2e-3), True, agreement(lead_moved=3e-3), "agrees"),
    (agreement(same_top=0.9, lead_lost=4e-3), True, agreement(lead_moved=3e-3), "differs: .*4.0e-03 are lost, .* by 3.0e-03"),
    (agreement(kl=2e-4, same_top=0.9, lead_lost=2e-3), True, agreement(lead_moved=3e-3), "differs: KL 2.0e-04"),
    (agreement(kl=5.0), False, None, "not judged: .*--uncut"),
    (agreement(kl=0.02), False, agreement(kl=0.01), "agrees"),
    (agreement(kl=0.04), False, agreement(kl=0.01), "differs: KL 4.0e-02, the uncut file 1.0e-02"),
    (agreement(n_texts=25, n_same_texts=24), True, None, "differs: 1 of 25 texts"),
]


@pytest.mark.parametrize(("found", "is_exact", "floor", "wanted"), JUDGED, ids=lambda one: str(one)[:25])
def test_verdicts(found, is_exact, floor, wanted):
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


@pytest.mark.slow  # Two processes; test_export_engines.py asks in this one.
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
    proofs = list(prove(file, folder, [ENGINES["llama.cpp"]]))
    assert (
        proofs[0].verdict == "not proved here: python -m shoal.export.engines.install llama.cpp" and proofs[0].version is None
    )
    code, out, err = shoal("verify", file, "--against", folder, "--engine", "llama.cpp")
    assert code == 2 and "not proved here" in out and "engines.install llama.cpp" in err
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


def test_a_refusal_says_where_the_rounding_of_a_file_counts(student, shoal, monkeypatch, tmp_path):
    folder, exact = student
    rounded = export("gguf", folder, tmp_path / "q.gguf", Options(kind="q8_0")).path
    differs = Proof(engine="llama.cpp", verdict="differs: KL 1.0", version="1", found=agreement(kl=1.0))
    monkeypatch.setattr(prove_module, "prove", lambda *args, **options: iter([differs]))
    said = {
        pair: shoal("verify", pair[0], "--against", pair[1])[2]
        for pair in ((rounded, folder), (rounded, rounded), (exact, folder))
    }
    assert all("in llama.cpp: KL 1.0" in err for err in said.values())
    assert [f"--against {rounded} leaves it out" in err for err in said.values()] == [True, False, False]


def test_an_engine_that_fails_is_one_line(student, monkeypatch):
    def broken(*args, **options):
        return subprocess.CompletedProcess(args, 1, "", "Traceback\n  deep\nRuntimeError: no such layer\n")

    monkeypatch.setattr(prove_module.subprocess, "run", broken)
    with pytest.raises(ValueError, match="cannot be run by transformers: RuntimeError: no such layer"):
        list(prove(student[1], student[0], [ENGINES["transformers"]]))


@pytest.mark.usefixtures("transformers_answers_here")
def test_one_engine_that_fails_does_not_hide_the_others(student, shoal, monkeypatch):
    """The reference runs, the engine under test does not: its line says so, and the next one is asked."""
    run = prove_module.subprocess.run

    def broken(words, **options):
        if "run_ctranslate2" in words[1]:
            return subprocess.CompletedProcess(
                words, 1, "", "Traceback\nValueError: windows are not known here\n[loader] bye\n"
            )
        return run(words, **options)

    engine = dataclasses.replace(ENGINES["transformers"], name="broken", script="run_ctranslate2.py")
    monkeypatch.setitem(ENGINES, "broken", engine)
    monkeypatch.setattr(prove_module.subprocess, "run", broken)
    code, out, err = shoal("verify", student[0], "--against", student[0], "--engine", "broken", "--engine", "transformers")
    assert code == 2 and "broken: fails: ValueError: windows are not known here" in re.sub(r"broken \S+:", "broken:", out)
    assert "transformers 5" in out and "agrees" in out and [line[:7] for line in err.splitlines()].count("shoal: ") == 1
    record = ProofRecord.load(student[0].with_name(f"m{RECORD}"))
    assert record.engines["transformers"].verdict == "agrees" and record.engines["broken"].verdict.startswith("fails")


def proof_of(engine="llama.cpp", **more):
    return Proof(engine=engine, verdict="agrees", version="1", found=agreement(kl=1e-6, n_texts=25, n_same_texts=25), **more)


@pytest.fixture
def run(student, tmp_path):
    """A run's folder with a checkpoint, a card, a report and an exported file."""
    folder = write_run(tmp_path / "run")
    shutil.copytree(student[0], folder / "model")
    (folder / "model" / "README.md").write_text("---\nlicense: mit\n---\n\n# A student\n\n## Limits\n\nNone.\n")
    shutil.copy(student[1], folder / "student.gguf")
    write_report(folder)
    return folder


class TestWherePeopleLook:
    """Proofs stand on the card and in the report of the student they are of, and of no other."""

    def test_card_and_report_say_engine_and_version(self, run):
        keep(run / "student.gguf", run / "model", [proof_of()])
        card, page = (run / "model" / "README.md").read_text(), (run / "report.html").read_text()
        assert card.count("## Proved in engines") == 1 and "| student.gguf | llama.cpp | 1 | agrees |" in card
        assert "## Limits\n\nNone.\n" in card and "Not proved here: transformers, " in card
        assert "Proved in engines" in page and "student.gguf" in page and "25 of 25" in page

    def test_a_second_proof_joins_the_first(self, run):
        keep(run / "student.gguf", run / "model", [proof_of()])
        keep(run / "student.gguf", run / "model", [proof_of("openvino"), proof_of("llama.cpp")])
        card = (run / "model" / "README.md").read_text()
        assert card.count("## Proved in engines") == 1 and card.count("| student.gguf |") == 2 and card.count("## Limits") == 1

    def test_sections_behind_it_stay(self, run):
        keep(run / "student.gguf", run / "model", [proof_of()])
        path = run / "model" / "README.md"
        path.write_text(path.read_text() + "\n## My notes\n\nmine\n")
        keep(run / "student.gguf", run / "model", [proof_of("mlx")])
        assert path.read_text().endswith("\n## My notes\n\nmine\n") and path.read_text().count("| student.gguf |") == 2

    def test_a_file_elsewhere_is_recorded_in_both_places(self, run, tmp_path):
        other = shutil.copy(run / "student.gguf", tmp_path / "other.gguf")
        written = keep(Path(other), run / "model", [proof_of()])
        assert {path.parent for path in written if path.name == f"other.gguf{RECORD}"} == {run, tmp_path}
        assert ProofRecord.load(tmp_path / f"other.gguf{RECORD}").student is None

    def test_proofs_of_an_earlier_student_are_not_shown(self, run):
        keep(run / "student.gguf", run / "model", [proof_of()])
        tiny_llama(3).save_pretrained(run / "model")
        assert read_run(run).proved == ()
        assert [one.file for one in records_in(run, fingerprint(run / "model"))] == []

    def test_proofs_of_an_earlier_file_are_not_shown(self, run):
        keep(run / "student.gguf", run / "model", [proof_of()])
        assert len(read_run(run).proved) == 1
        with (run / "student.gguf").open("ab") as file:
            file.write(b"x")
        assert read_run(run).proved == ()

    def test_the_record_of_a_cut_that_is_healed_is_not_overwritten(self, run):
        shutil.copytree(run / "model", run / "cut")
        shutil.copy(run / "verification.json", run / f"cut{RECORD}")
        before = (run / f"cut{RECORD}").read_bytes()
        with pytest.raises(ValueError, match="is another record"):
            keep(run / "cut", run / "model", [proof_of()])
        assert (run / f"cut{RECORD}").read_bytes() == before and read_run(run).proved == ()

    def test_a_damaged_record_is_one_line(self, run, shoal):
        (run / f"student.gguf{RECORD}").write_text('{"engines": {"llama.cpp": 1}}')
        code, _, err = shoal("report", run)
        assert code == 2 and "student.gguf.verification.json" in err and len(err.strip().splitlines()) == 1


def standing(name):
    """The environment of an engine as its installation leaves it."""
    engine = ENGINES[name]
    (engine.home / "bin").mkdir(parents=True, exist_ok=True)
    (engine.home / "bin" / "python").touch()
    (engine.home / "packages.txt").write_text("\n".join(engine.packages) + "\n")
    return engine


class TestInstalling:
    """Engines come into environments of their own, or one line says why not."""

    @pytest.fixture(autouse=True)
    def home(self, monkeypatch, tmp_path):
        monkeypatch.setenv("SHOAL_ENGINES", str(tmp_path / "engines"))

    def test_an_index_that_cannot_be_reached_is_one_line_and_leaves_no_engine(self, monkeypatch, capsys):
        def unreachable(engine, *words):
            raise ValueError(f"{engine.name} cannot be installed: ERROR: no index")

        monkeypatch.setattr(install_module.venv, "create", lambda home, **how: None)
        monkeypatch.setattr(install_module, "_pip", unreachable)
        assert install_module.main(["llama.cpp"]) == 2
        assert "llama.cpp cannot be installed: ERROR: no index" in capsys.readouterr().err
        assert ENGINES["llama.cpp"].interpreter() is None
        assert ENGINES["llama.cpp"].missing == "llama.cpp cannot be installed: ERROR: no index", "the reason stays"

    def test_no_network_is_said_to_be_the_reason(self, monkeypatch, capsys):
        """pip warns of every try, and ends with another reason."""

        def create(home, **how):
            python = standing("openvino").home / "bin" / "python"
            lines = (
                "WARNING: Retrying (Retry(total=0)) after connection broken by 'Refused'",
                "ERROR: No matching distribution",
            )
            python.write_text("#!/bin/sh\n" + "".join(f'echo "{line}" >&2\n' for line in lines) + "exit 1\n")
            python.chmod(0o755)

        monkeypatch.setattr(install_module.venv, "create", create)
        assert install_module.main(["openvino"]) == 2
        said = "openvino cannot be installed: the connection to the package index broke; ERROR: No matching distribution\n"
        assert capsys.readouterr().err == said

    def test_what_stands_is_not_installed_again(self, monkeypatch):
        engine = standing("llama.cpp")
        monkeypatch.setattr(install_module, "_pip", lambda *words: pytest.fail("installed again"))
        assert install_module.install(engine) is False and engine.interpreter() == str(engine.home / "bin" / "python")

    def test_an_engine_of_other_versions_or_without_its_interpreter_is_none(self):
        """Pins that moved on, or a Python that was removed; the environment would be said to be there and not run."""
        engine = standing("llama.cpp")
        (engine.home / "packages.txt").write_text("xllamacpp==2020.1\n")
        assert engine.interpreter() is None
        engine = standing("mlx")
        (engine.home / "bin" / "python").unlink()
        (engine.home / "bin" / "python").symlink_to(engine.home / "gone")
        assert engine.interpreter() is None and not engine.stands

    @pytest.mark.parametrize("when", ["create", "install"])
    def test_an_installation_that_is_killed_is_no_engine_and_says_so(self, when, monkeypatch, capsys):
        """An earlier version stood there; the environment has an interpreter before it has its packages."""
        engine = standing("llama.cpp")
        (engine.home / "packages.txt").write_text("xllamacpp==2020.1\n")

        def create(home, **how):
            (home / "bin").mkdir()
            (home / "bin" / "python").touch()
            if when == "create":
                raise KeyboardInterrupt

        def killed(engine, *words):
            raise KeyboardInterrupt

        monkeypatch.setattr(install_module.venv, "create", create)
        monkeypatch.setattr(install_module, "_pip", killed)
        assert install_module.main(["llama.cpp", "mlx"]) == 130 and "Traceback" not in capsys.readouterr().err
        assert engine.interpreter() is None and (engine.home / "bin" / "python").is_file()
        assert engine.missing == f"llama.cpp is half installed: its installation was stopped; {engine.install}"
        assert not ENGINES["mlx"].home.exists(), "the others are not begun"
        monkeypatch.setattr(install_module.venv, "create", lambda home, **how: standing("llama.cpp"))
        monkeypatch.setattr(install_module, "_pip", lambda *words: None)
        assert install_module.install(engine) is True and engine.interpreter() is not None, "the same command goes on"

    def test_an_environment_that_cannot_be_made_is_one_line(self, monkeypatch, capsys):
        def broken(home, **how):
            raise subprocess.CalledProcessError(1, ["python", "-m", "ensurepip"])

        monkeypatch.setattr(install_module.venv, "create", broken)
        assert install_module.main(["llama.cpp"]) == 2
        said = capsys.readouterr().err.strip()
        assert said.startswith("llama.cpp cannot be installed: ") and "ensurepip" in said and "\n" not in said
        assert ENGINES["llama.cpp"].missing == said, "the reason stays"

    def test_what_an_engine_takes_from_here_is_linked_again(self, monkeypatch, tmp_path):
        """Engines may lie outside the clone that installed them, and that clone may be gone."""
        engine = standing("transformers-4")
        (engine.home / "bin" / "python").unlink()
        (engine.home / "bin" / "python").write_text(f"#!/bin/sh\necho {tmp_path}\n")
        (engine.home / "bin" / "python").chmod(0o755)
        (tmp_path / install_module.LINK).write_text("/gone/site-packages\n")
        assert install_module.install(engine) is False
        assert (tmp_path / install_module.LINK).read_text().strip() == sysconfig.get_path("purelib")

    @pytest.mark.parametrize("words", [[], ["llama"]])
    def test_wrong_names_are_one_line(self, words, capsys):
        assert install_module.main(words) == 2 and len(capsys.readouterr().err.strip().splitlines()) == 1
