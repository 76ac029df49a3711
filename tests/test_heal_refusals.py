"""What ``shoal heal`` cannot do: one clear line, exit code 2, and no folder left behind."""

from types import SimpleNamespace

import pytest
import torch
from families import LLAMA, tiny_model
from heal_command import FEW, healing, one_line
from heal_world import student_of
from text_world import word_tokenizer
from transformers import AutoModelForCausalLM, OlmoConfig
from world import N_WORDS, write_model, write_text

from shoal.run.healing.heal_training import less_memory
from shoal.train.heal.config import HealConfig


@pytest.mark.parametrize(
    "more, said",
    [
        (("--rank", 64), "rank 64 is above the width"),
        (("--rank", 0), "rank"),
        (("--tokens", 0), "--tokens"),
        (("--tokens", "many"), "--tokens"),
        (("--tokens", 10**9), "too little text"),
        (("--batch", 0), "batch"),
        (("--lr", 0), "lr=0 needs to be a finite number above 0"),
        (("--lr", -1), "lr=-1 needs to be a finite number above 0"),
        (("--lr", "inf"), "lr=inf needs to be a finite number above 0"),
        (("--lr", "nan"), "lr=nan needs to be a finite number above 0"),
        (("--lr", "fast"), "needs a number"),
        (("--method", "lora1"), "did you mean 'lora'"),
        (("--preset", "uidle"), "did you mean 'uidl'"),
        (("--targets", "experts"), "targets"),
        (("--objective", "forward_k"), "did you mean 'forward_kl'"),
        (("--objective", "0*forward_kl"), "weight 0 of forward_kl needs to be a finite number above 0"),
        (("--objective", "next_token + -1*forward_kl"), "weight -1 of forward_kl"),
        (("--objective", "1e999*forward_kl"), "weight 1e999 of forward_kl"),
        (("--objective", "1.2.3*forward_kl"), "weight 1.2.3 of forward_kl"),
        (("--objective", "hidden_mse", "--teacher", "none"), "--teacher"),
        (("--objective", "relative_mse", "--method", "partial", "--layers", 1), "does not depend on what is trained"),
        (("--plan", "nowhere.json"), "no plan at"),
        (("--predict", "answers"), "chat template"),
        (("--merge", "sideways"), "sideways"),
        (("--merge", "dequantised"), "use original, apart or auto"),
        (("--most-lost", -1), "most_lost"),
        (("--dropout", 1), "dropout"),
        (("--warmup", -0.1), "warmup"),
        (("--teacher-cache", 10**6), "more than the vocabulary of 61"),
        (("--method", "new"), "this plan puts none in"),
        (("--length", 10**6), "window"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_is_one_clear_line_and_leaves_nothing(more, said, cut, shoal, tmp_path):
    code, _, err = shoal("heal", *healing(cut, "--out", "out", *more))
    one_line(code, err, said)
    assert not (tmp_path / "out").exists()


def given(cut, student, teacher, *more):
    return (student, "--teacher", teacher, "--text", cut["text"], *FEW, "--out", "out", *more)


def refused(shoal, tmp_path, said, *arguments):
    code, _, err = shoal("heal", *arguments)
    one_line(code, err, said)
    assert not (tmp_path / "out").exists()


def write(model, folder):
    model.save_pretrained(folder)
    word_tokenizer(N_WORDS).save_pretrained(folder)
    return folder


def test_models_that_do_not_belong_together_are_refused(cut, shoal, tmp_path, capfd):
    deeper = write_model(tmp_path / "deeper", n_layers=8)
    other = tiny_model("llama", n_layers=6)
    other.resize_token_embeddings(70)
    write(other, tmp_path / "other")
    capfd.readouterr()  # what saving a model says
    refused(shoal, tmp_path, "61 tokens, the teacher 70", *healing(cut, "--out", "out", "--teacher", tmp_path / "other"))
    refused(shoal, tmp_path, "are the same model", *given(cut, cut["teacher"], cut["teacher"]))
    refused(shoal, tmp_path, "8 layers, more than the 6 of its teacher", *given(cut, deeper, cut["teacher"]))
    alone = (cut["run"] / "model", "--text", cut["text"], *FEW, "--out", "out")
    planned = given(cut, deeper, cut["teacher"], "--plan", cut["run"] / "plan.json", "--objective", "relative_mse")
    refused(shoal, tmp_path, "the plan leaves 4 layers, the student has 8", *planned)
    refused(shoal, tmp_path, "is no folder here", *alone, "--teacher", "nobody/nothing")


def test_an_adapter_is_no_student(cut, shoal, tmp_path):
    code, _, err = shoal("heal", *healing(cut, "--out", "healed", "--merge", "apart"))
    assert code == 0, err
    refused(shoal, tmp_path, "adapter", *given(cut, tmp_path / "healed" / "adapter", cut["teacher"]))


@pytest.mark.slow
def test_trained_values_of_another_student_are_refused(cut, shoal, tmp_path):
    code, _, err = shoal("heal", *healing(cut, "--out", "healed"))
    assert code == 0, err
    code, _, err = shoal("heal", *healing(cut, "--out", "wide", "--rank", 4))
    assert code == 0, err
    (tmp_path / "wide" / "heal.safetensors").replace(tmp_path / "healed" / "heal.safetensors")
    code, _, err = shoal("heal", *healing(cut, "--out", "healed", "--merge", "original", "--overwrite"))
    one_line(code, err, "the trained values are of another model or method")
    assert not (tmp_path / "healed" / "model").exists()


def test_a_text_that_holds_no_step_is_refused(cut, shoal, tmp_path):
    short = write_text(tmp_path / "short.jsonl", n_documents=24)
    more = ("--text", short, "--length", 16, "--out", "out")
    refused(shoal, tmp_path, "too little text", cut["run"], *more, "--tokens", 4096)
    enough = ("--text", cut["text"], *more[2:])
    refused(shoal, tmp_path, "less than one step of 2048 samples", cut["run"], *enough, "--batch", 2048)


def test_a_loss_that_is_no_number_leaves_no_folder(cut, shoal, tmp_path, monkeypatch):
    from shoal.train.heal.losses import HealLoss

    whole, calls = HealLoss.__call__, []

    def breaks(self, *streams):
        calls.append(1)
        return whole(self, *streams) * (float("nan") if len(calls) > 8 else 1)

    monkeypatch.setattr(HealLoss, "__call__", breaks)
    code, _, err = shoal("heal", *healing(cut, "--out", "out", "--tokens", 1024))
    one_line(code, err, "give a lower --lr, or --lr auto")
    assert len(calls) > 8 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
    ids=["python", "cpu", "card"],
)
def test_an_optimiser_without_memory_says_what_takes_less(error, cut, shoal, tmp_path, monkeypatch):
    def step(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    code, _, err = shoal("heal", *healing(cut, "--out", "out", "--method", "full"))
    one_line(code, err, "healing ran out of memory; give micro_batch 1 (4 here), checkpointing, method lora, teacher_bits 4,")
    assert not (tmp_path / "out").exists()


def test_shorter_than_the_samples_that_it_trains_on_takes_less():
    """It named the length of the other slices, where samples of half of it and less had not fitted."""
    for config, expected in ((HealConfig(), 256), (HealConfig(predict="answers"), 1024)):
        bench = SimpleNamespace(
            config=config,
            request=SimpleNamespace(teacher="t"),
            given=SimpleNamespace(length=256),
            inputs=SimpleNamespace(length=1024),
        )
        assert less_memory(bench).endswith(f"samples shorter than {expected} tokens")


def test_what_has_no_part_to_train_is_refused(cut, shoal, tmp_path, capfd):
    bare = AutoModelForCausalLM.from_config(OlmoConfig(**{**LLAMA, "num_hidden_layers": 6}))  # its norms have no gains
    write(bare, tmp_path / "teacher")
    write(student_of(bare), tmp_path / "student")
    capfd.readouterr()
    made = given(cut, "student", "teacher")
    refused(shoal, tmp_path, "no gains or biases to train", *made, "--method", "norms")
    refused(shoal, tmp_path, "trains nothing of this", *made, "--method", "partial", "--layers", 0, "--head", "keep")
