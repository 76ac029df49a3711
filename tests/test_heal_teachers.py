"""Teachers that do not fit: layers on disk, or in 4 bits with what that moves."""

import json

import pytest
import torch
from families import tiny_model
from heal_command import healing, one_line
from heal_world import KEPT, config, student_of, text, write_wide
from shared_work import launch
from text_world import word_tokenizer
from world import N_WORDS

from shoal.engine.open import load_strictly
from shoal.engine.streamed import open_streamed
from shoal.engine.view import DecoderView
from shoal.train.heal import teachers
from shoal.train.heal.cut_place import CutPlace
from shoal.train.heal.qlora import open_in_4_bits, out_of_4_bits
from shoal.train.heal.quantised_teacher import compare_teachers
from shoal.train.heal.teachers import RunningTeacher, StreamedTeacher
from shoal.train.heal.train import Lesson, prepare, train

ALL = (0, 1, 3, 5, 6)


def both_ways(folder, family):
    """The same checkpoint of six layers as a teacher with one layer in memory, and as one with all of them."""
    tiny_model(family, n_layers=6).save_pretrained(folder)
    word_tokenizer(N_WORDS).save_pretrained(folder)
    opened, residency = open_streamed(str(folder), n_resident=1)
    return StreamedTeacher(DecoderView(opened.model, residency=residency)), RunningTeacher(load_strictly(folder))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen3_moe"])
def test_a_teacher_read_from_disk_answers_bit_for_bit_as_one_in_memory(family, tmp_path):
    streamed, running = both_ways(tmp_path / "teacher", family)
    for padded in (False, True):
        batch = text(4, padded=padded).batches(4)[0]
        ours, theirs = streamed.training(batch, ALL), running.training(batch, ALL)
        real = batch["attention_mask"].bool() if padded else torch.ones_like(batch["input_ids"]).bool()
        assert torch.equal(ours.logits_BTV[real], theirs.logits_BTV[real])
        assert all(torch.equal(ours.states[boundary][real], theirs.states[boundary][real]) for boundary in ALL)
        for teacher in (streamed, running, streamed, running):
            assert torch.equal(teacher.selection(batch)[real], theirs.logits_BTV[real])


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen3_moe"])
def test_a_validation_reads_its_text_through_the_layers_once(family, tmp_path, monkeypatch):
    """A later one has the same logits, bit for bit, of the states that the first one left, as far as they are kept."""
    streamed, running = both_ways(tmp_path / "teacher", family)
    ran = []
    for layer in running.layers:  # A part of it: a head runs the model with stubs in place of its layers.
        next(layer.children()).register_forward_hook(lambda *_: ran.append(1))
    kept = DecoderView.stream
    monkeypatch.setattr(DecoderView, "stream", lambda *given, **more: ran.append(6) or kept(*given, **more))
    batches = [text(4).batches(4)[0], text(4, seed=2).batches(4)[0], text(4, padded=True).batches(4)[0]]
    for teacher in (streamed, running):
        first = [teacher.selection(batch) for batch in batches]
        assert sum(ran) == 6 * len(batches)
        assert all(torch.equal(teacher.selection(batch), one) for batch, one in zip(batches, first, strict=True))
        assert sum(ran) == 6 * len(batches)
        ran.clear()
    monkeypatch.setattr(teachers, "MOST_REMEMBERED", 0)
    forgetful = RunningTeacher(running.model)
    ran.clear()  # A new view looks at what a layer returns.
    for _ in range(2):
        assert torch.equal(forgetful.selection(batches[0]), first[0])
    assert sum(ran) == 12


def test_a_student_of_a_teacher_on_disk_has_the_losses_of_one_in_memory(tmp_path):
    curves = []
    for teacher in both_ways(tmp_path / "teacher", "llama"):
        lesson = Lesson(text(24), text(8, seed=1), teacher, CutPlace.of_kept(KEPT, 6))
        asked = config(objective="forward_kl + 0.5*relative_mse")
        pupil = prepare(student_of(tiny_model("llama", n_layers=6)), asked, lesson)
        curves.append(train(pupil, asked, lesson, tmp_path / str(len(curves))).curve)
    assert len(curves[0]) > 2 and curves[0] == curves[1]


def test_a_teacher_in_4_bits_says_how_far_it_is_from_the_whole_one(tmp_path):
    saved = write_wide(tmp_path / "teacher")
    whole, packed = RunningTeacher(load_strictly(saved)), RunningTeacher(open_in_4_bits(saved))
    found = compare_teachers(whole, packed, text(8, seed=1), bits=4, source=saved)
    as_numbers = compare_teachers(whole, RunningTeacher(out_of_4_bits(saved)), text(8, seed=1), bits=4, source=saved)
    assert found.kl == pytest.approx(as_numbers.kl, rel=0.1) and found.kl > 0  # the product of 4-bit weights is in bf16
    assert found.n_bytes < found.n_bytes_whole
    assert compare_teachers(whole, whole, text(8, seed=1), bits=4, source=saved).kl == pytest.approx(0, abs=1e-9)


# -- through the command ---------------------------------------------------------------------------------------------------


@pytest.mark.slow  # A whole healing; the laws above are of its teachers alone.
def test_the_command_heals_by_a_teacher_on_disk(cut, shoal, tmp_path):
    for name, resident in (("memory", "all"), ("disk", 1)):
        code, _, err = shoal("heal", *healing(cut, "--out", name, "--resident", resident))
        assert code == 0, err
    here, there = (json.loads((tmp_path / name / "heal.json").read_text()) for name in ("memory", "disk"))
    assert here["curve"] == there["curve"]
    here, there = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("memory", "disk"))
    assert here["quality"]["kl"] == pytest.approx(there["quality"]["kl"], rel=1e-6)
    code, _, err = shoal("heal", *healing(cut, "--out", "written", "--resident", 1, "--source", "teacher"))
    one_line(code, err, "give --resident all")
    assert not (tmp_path / "written").exists()


@pytest.mark.slow  # The command above it does the same behind a run that is there.
def test_a_run_heals_with_its_layers_on_disk(cut, shoal, tmp_path):
    made = ("--text", cut["text"], "--length", 16, "--drop", 2, "--repair", "none", "--guard", 1)
    code, _, err = shoal(
        "compress", cut["teacher"], *made, "--heal", "lora", "--heal-tokens", 2048, "--resident", 1, "--out", "run"
    )
    assert code == 0, err
    healed = json.loads((tmp_path / "run" / "heal.json").read_text())
    assert healed["curve"][-1]["step"] > 0 and (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.mark.slow  # A whole healing; the laws above are of its teachers alone.
def test_the_command_heals_by_a_teacher_in_4_bits(cut, shoal, tmp_path, capfd):
    teacher = write_wide(tmp_path / "teacher", n_layers=4)
    student_of(load_strictly(teacher), kept=(0, 1, 3)).save_pretrained(tmp_path / "student")
    for folder in (teacher, tmp_path / "student"):
        word_tokenizer(N_WORDS).save_pretrained(folder)
    capfd.readouterr()
    given = ("student", "--teacher", teacher, "--text", cut["text"], "--tokens", 256, "--batch", 4, "--length", 16)
    code, out, err = shoal("heal", *given, "--teacher-bits", 4, "--out", "out")
    assert code == 0, err
    found = json.loads((tmp_path / "out" / "heal.json").read_text())["quantised"]
    assert 0 < found["kl"] < 0.1 and found["n_bytes"] < found["n_bytes_whole"]
    assert "nats per token from the teacher as its checkpoint is" in out
    assert "4 bits" in (tmp_path / "out" / "model" / "README.md").read_text()
    assert "4 bits" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    "more, said",
    [
        (("--teacher-bits", 8), "teacher_bits"),
        (("--teacher-bits", 4), "Use no --teacher-bits"),  # maps of 32 inputs
        (("--teacher-bits", 4, "--objective", "next_token"), "not read by objective 'next_token'"),
        (("--teacher-bits", 4, "--teacher", "none"), "not read by objective 'next_token'"),
        (("--resident", 0), "--resident '0' needs"),
        (("--resident", "some"), "--resident 'some' needs"),
        (("--resident", 1, "--device", "cuda:0,1"), "leave out --resident, or name one card"),
    ],
)
def test_a_teacher_that_cannot_be_so_is_one_line_and_leaves_nothing(more, said, cut, shoal, tmp_path):
    code, _, err = shoal("heal", *healing(cut, "--out", "out", *more))
    one_line(code, err, said)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_heal_through_the_command(cut, tmp_path):
    given = [str(one) for one in healing(cut, "--micro-batch", 2)]
    ended = launch(2, "-m", "shoal", "heal", *given, "--out", str(tmp_path / "two"), timeout=400)
    assert all(one.code == 0 for one in ended), "\n".join(one.err[-3000:] for one in ended)
    ended = launch(1, "-m", "shoal", "heal", *given, "--out", str(tmp_path / "one"), timeout=400)
    assert ended[0].code == 0, ended[0].err
    two, one = (json.loads((tmp_path / name / "heal.json").read_text()) for name in ("two", "one"))
    assert [point["kl"] for point in two["curve"]] == pytest.approx([point["kl"] for point in one["curve"]], rel=1e-3)
    two, one = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("two", "one"))
    assert two["quality"]["kl"] == pytest.approx(one["quality"]["kl"], rel=1e-2)
    assert (tmp_path / "two" / "model" / "model.safetensors").exists() and (tmp_path / "two" / "report.html").exists()
