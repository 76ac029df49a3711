"""A format is told what was done to a student after its cut, wherever the run wrote it down."""

import pytest
from gguf_files import keys_of, tensors_of
from test_export_table import REFIT, N, llama, plan_of, repaired, run_folder  # noqa: F401  (llama is a fixture)
from test_gguf_cut import same_layers

from shoal.edits.drop import Drop
from shoal.edits.plan import Plan
from shoal.export.exporter import Options
from shoal.export.found_plan import LATER, PLANS, REQUEST
from shoal.export.table import export
from shoal.run.folder import CHOSEN
from shoal.run.healing.heal_request import HealRequest
from shoal.run.stages.fit import FITTED
from shoal.run.stages.prune import PRUNED

TEXTS = ("mergekit", "prune-layers")


def cut_run(source, folder):
    return run_folder(source, folder, Drop(indices=(1, 4)))


def test_the_files_are_those_that_runs_write():
    assert PLANS == (PRUNED, FITTED, CHOSEN) and set(LATER) == {FITTED, PRUNED, "heal.json"}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("later", LATER)
def test_a_list_of_layers_never_stands_for_a_student_that_was_changed(later, name, llama, tmp_path):  # noqa: F811
    """``plan.json`` of a run is the cut as it was chosen; what came after it lies beside."""
    run = repaired(llama, tmp_path / "run")
    if later == "heal.json":
        plan_of(llama, Drop(indices=(1, 4))).save(run / later)
        plan_of(llama, Drop(indices=(1, 4))).save(run / CHOSEN)
    else:
        Plan.load(run / CHOSEN).save(run / later)
        plan_of(llama, Drop(indices=(1, 4))).save(run / CHOSEN)
    for student in (run, run / "model"):
        with pytest.raises(
            ValueError, match=f"cannot be exported as {name}: it (has values of its own|is more|was trained)"
        ) as said:
            export(name, student, None, Options())
        assert f"its cut alone: shoal plan {llama} --layers 1,4 --out CUT" in str(said.value)


def test_what_a_healing_run_cut_is_a_list_still(llama, tmp_path):  # noqa: F811
    run = cut_run(llama, tmp_path / "run")
    (run / "model").rename(run / "cut")
    (run / "heal.json").write_text("{}")
    assert export("prune-layers", run / "cut", None, Options()).text == "1,4"


@pytest.fixture
def healed(llama, tmp_path):  # noqa: F811
    """The folder of ``shoal heal`` on a cut: a model, and a request that names the plan of the cut."""
    cut, folder = cut_run(llama, tmp_path / "run"), tmp_path / "healed"
    repaired(llama, folder)
    (folder / CHOSEN).unlink()
    HealRequest(student=str(cut), teacher=str(llama), plan=str(cut / CHOSEN)).save(folder / REQUEST)
    return folder


def test_a_healed_student_is_grafted_by_the_plan_of_what_was_healed(healed, llama, shoal, tmp_path):  # noqa: F811
    teacher = export("gguf", llama, tmp_path / "teacher.gguf", Options(kind="q8_0")).path
    code, _, err = shoal("export", "gguf", healed, "--like", teacher, "--out", "s.gguf", "--type", "f32")
    assert code == 0, err
    assert keys_of(tmp_path / "s.gguf")["shoal.kept_blocks"] == [0, 2, 3, 5]
    different = {"blk.2.attn_q.weight", "blk.2.ffn_down.weight", "blk.3.attn_norm.weight"}
    before, after = tensors_of(teacher), tensors_of(tmp_path / "s.gguf")
    untouched = {name: one for name, one in after.items() if name not in different}
    old = {f"blk.{(0, 2, 3, 5)[int(name[4])]}{name[5:]}" for name in different}
    same_layers({name: one for name, one in before.items() if name not in old}, untouched, (0, 2, 3, 5))
    for name in TEXTS:
        with pytest.raises(ValueError, match="was trained after"):
            export(name, healed, None, Options())


@pytest.mark.parametrize("plan", ["gone/plan.json", "/nowhere/plan.json", None])
def test_a_healed_student_whose_cut_is_gone_is_not_guessed_at(plan, healed, llama, tmp_path):  # noqa: F811
    teacher = export("gguf", llama, tmp_path / "teacher.gguf", Options(kind="f32")).path
    HealRequest(student="run", teacher=str(llama), plan=plan).save(healed / REQUEST)
    with pytest.raises(ValueError, match=f"4 layers, .* {N}, and no plan.json beside it says which are which"):
        export("gguf", healed, tmp_path / "s.gguf", Options(like=teacher))


def test_a_cut_says_that_the_run_of_its_plan_did_more(llama, shoal, tmp_path):  # noqa: F811
    run = cut_run(llama, tmp_path / "run")
    teacher = export("gguf", llama, tmp_path / "teacher.gguf", Options(kind="q8_0")).path
    code, out, _ = shoal("cut", teacher, "--plan", "run/plan.json", "--out", "a.gguf")
    assert code == 0 and "the cut alone" not in out
    Plan.load(run / CHOSEN).save(run / FITTED)
    (run / "heal.json").write_text("{}")
    code, out, _ = shoal("cut", teacher, "--plan", "run/plan.json", "--out", "b.gguf")
    assert code == 0 and f"the student of run was repaired and trained: shoal export gguf run --like {teacher}" in out
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
