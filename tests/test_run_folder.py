"""The run folder: finished stages are found again, other inputs need a word, foreign folders are left alone."""

import subprocess
import sys

import pytest

from shoal.run.folder import RunFolder


def folder(path, **options):
    return RunFolder(path, version="0", **options)


def finish(one, stage, key, name):
    (one / name).write_text(key)
    one.finish(stage, key, seconds=1.0, files=[name])


def test_a_finished_stage_is_found_by_the_next_run(tmp_path):
    finish(folder(tmp_path / "run"), "scan", "k1", "scan.json")
    assert folder(tmp_path / "run").is_done("scan", "k1")
    assert not folder(tmp_path / "run").is_done("plan", "k1")


def test_a_stage_that_lost_a_file_is_not_done(tmp_path):
    one = folder(tmp_path)
    finish(one, "scan", "k1", "scan.json")
    (one / "scan.json").unlink()
    assert not one.is_done("scan", "k1")


def test_other_inputs_need_overwrite_and_then_only_that_stage_goes(tmp_path):
    one = folder(tmp_path)
    finish(one, "scan", "k1", "scan.json")
    finish(one, "plan", "k2", "plan.json")
    with pytest.raises(ValueError, match="--overwrite"):
        folder(tmp_path).is_done("plan", "other")
    again = folder(tmp_path, overwrite=True)
    assert not again.is_done("plan", "other")
    assert not (tmp_path / "plan.json").exists()
    assert again.is_done("scan", "k1") and (tmp_path / "scan.json").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_somebody_else_is_refused_even_with_overwrite(tmp_path, overwrite):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="not written by shoal"):
        folder(tmp_path, overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        folder(tmp_path / "a")


def test_a_damaged_record_is_one_clear_line(tmp_path):
    folder(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="run.json") as error:
        folder(tmp_path)
    assert "\n" not in str(error.value)


def test_a_run_that_is_refused_leaves_the_record_of_the_one_that_stands(tmp_path):
    finish(folder(tmp_path, command="the first"), "scan", "k1", "scan.json")
    before = (tmp_path / "run.json").read_text()
    with pytest.raises(ValueError, match="--overwrite"):
        folder(tmp_path, command="another").is_done("scan", "other")
    assert (tmp_path / "run.json").read_text() == before
    finish(folder(tmp_path, command="another"), "plan", "k2", "plan.json")
    assert folder(tmp_path).record.stages.keys() == {"scan", "plan"}
    assert '"another"' in (tmp_path / "run.json").read_text()


def test_a_folder_serves_one_process_at_a_time_and_is_free_when_that_ends(tmp_path):
    program = (
        "import sys; from pathlib import Path; from shoal.run.folder import RunFolder; "
        "RunFolder(Path(sys.argv[1]), version='0'); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="in use by another run"):
            folder(tmp_path / "run")
        other.kill()
    folder(tmp_path / "run")
    folder(tmp_path / "run")  # The same process may open it again.
