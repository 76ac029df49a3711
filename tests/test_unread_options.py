"""An option that is not read is an error, a wrong reason is none, and an added token changes no text's tokens."""

import pytest
from safetensors.torch import load_file, save_file
from text_world import word_tokenizer
from world import N_WORDS, write_model

from shoal.evaluate.comparison import other_tokenizer


def one_line(code, err, *said):
    lines = [line for line in err.splitlines() if line.startswith("shoal: ")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in err, err
    assert all(word in lines[0] for word in said), lines[0]


UNREAD = {
    "--text": ("nowhere.txt", "--text is not read"),
    "--samples": (8, "--samples is not read"),
    "--length": (16, "--length is not read"),
    "--seed": (1, "--seed is not read"),
    "--dtype": ("bfloat16", "--dtype is not read"),
    "--resident": (1, "--resident is not read"),
    "--by": ("angular/last", "--by angular/last is a score"),
    "--rounds": (2, "--rounds measures anew"),
}


@pytest.mark.parametrize("option", UNREAD)
def test_a_plan_from_config_alone_refuses_what_it_does_not_read(small, shoal, tmp_path, option):
    value, said = UNREAD[option]
    code, _, err = shoal("plan", small["model"], "--recipe", "uidl-simple", "--drop", 2, "--out", "run", option, value)
    one_line(code, err, said)
    assert not (tmp_path / "run" / "plan.json").exists()


def test_a_score_beside_a_selector_that_reads_none_is_refused_everywhere(small, shoal):
    code, _, err = shoal("compress", small["model"], "--out", "run", "--select", "deepest", "--by", "angular/last")
    one_line(code, err, "--select deepest reads none")


@pytest.mark.parametrize("fault", ["nan", "zero"])
def test_damaged_weights_are_named_as_such(small, shoal, tmp_path, fault):
    write_model(tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    if fault == "nan":
        tensors["model.norm.weight"][0] = float("nan")
    else:
        tensors = {name: value * 0 for name, value in tensors.items()}
    save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    options = ("--text", small["text"], "--length", 16, "--samples", 8)
    code, _, err = shoal("scan", "m", "--out", "run", *options)
    one_line(code, err, "NaN" if fault == "nan" else "exactly zero", "damaged")


def test_an_added_padding_token_is_no_other_tokenizer():
    plain, padded = word_tokenizer(N_WORDS), word_tokenizer(N_WORDS)
    padded.add_special_tokens({"pad_token": "[MORE]"})
    assert len(padded) == len(plain) + 1
    assert other_tokenizer(plain, padded) is None and other_tokenizer(padded, plain) is None
    assert "its tokenizer is another" in other_tokenizer(plain, word_tokenizer(N_WORDS - 5))


def test_a_student_with_an_added_padding_token_is_held_against_its_teacher(small, shoal, tmp_path):
    write_model(tmp_path / "student", n_layers=5, seed=1)
    tokenizer = word_tokenizer(N_WORDS)
    tokenizer.add_special_tokens({"pad_token": "[MORE]"})
    tokenizer.save_pretrained(tmp_path / "student")
    options = ("--text", small["text"], "--length", 16, "--samples", 8)
    code, _, err = shoal("eval", "student", "--teacher", small["model"], *options)
    assert code == 0, err
