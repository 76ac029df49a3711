"""Generations are plain greedy decoding, and differences are counted where they begin."""

import pytest
import torch
from families import FAMILIES, VOCAB, every_family, tiny_model

from shoal.engine.student import TEACHER, Student
from shoal.engine.view import DecoderView
from shoal.evaluate.generate import generations, greedy_texts, greedy_tokens, model_of
from shoal.words.types import Unit

PROMPT_T = torch.randint(3, VOCAB, (6,), generator=torch.Generator().manual_seed(2))


class Letters:
    """A tokenizer of one token per number."""

    def __call__(self, text, **how):
        return {"input_ids": [int(word) for word in text.split()]}

    def decode(self, ids, *, skip_special_tokens=False):
        return " ".join(str(int(i)) for i in ids)

    def batch_decode(self, rows):
        return [self.decode(row) for row in rows]


def argmax_without_cache(model, prompt_T, n):
    ids = prompt_T[None]
    for _ in range(n):
        with torch.no_grad():
            following = model(input_ids=ids, use_cache=False).logits[0, -1].argmax()
        ids = torch.cat([ids, following[None, None]], 1)
        if following == model.generation_config.eos_token_id:
            break
    return ids[0, len(prompt_T) :].tolist()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_greedy_tokens_equal_argmax_without_a_cache(family):
    model = tiny_model(family, n_layers=3)
    assert greedy_tokens(model, PROMPT_T, max_new_tokens=8) == argmax_without_cache(model, PROMPT_T, 8)


def test_what_the_checkpoint_asks_of_sampling_is_off():
    model = tiny_model("llama", n_layers=3)
    plain = greedy_tokens(model, PROMPT_T, max_new_tokens=12)
    own = model.generation_config
    own.do_sample, own.temperature, own.repetition_penalty, own.no_repeat_ngram_size, own.num_beams = True, 3.0, 5.0, 2, 3
    torch.manual_seed(0)
    assert greedy_tokens(model, PROMPT_T, max_new_tokens=12) == plain


def test_teacher_against_itself_is_identical_and_another_model_differs():
    teacher, other = tiny_model("llama", n_layers=3), tiny_model("llama", n_layers=3, seed=1)
    prompts = ["5 6 7", "9"]
    same = generations(teacher, teacher, tokenizer=Letters(), prompts=prompts, max_new_tokens=7)
    assert [one.prompt for one in same] == prompts
    assert all(one.is_identical and one.teacher == one.student and one.n_tokens == 7 for one in same)
    for one in generations(teacher, other, tokenizer=Letters(), prompts=prompts, max_new_tokens=7):
        ours, theirs = one.teacher.split(), one.student.split()
        assert not one.is_identical and one.n_tokens == 7
        assert ours[: one.n_agreed] == theirs[: one.n_agreed] and ours[one.n_agreed] != theirs[one.n_agreed]


class ChatLetters(Letters):
    """As a chat model's tokenizer: a template of whole tokens around what the user says."""

    chat_template = "a template"

    def apply_chat_template(self, turns, tokenize, add_generation_prompt):
        assert not tokenize and add_generation_prompt and [turn["role"] for turn in turns] == ["user"]
        if turns[0]["content"] == "13":
            raise TypeError("no such turn")
        return f"20 {turns[0]['content']} 21"


def test_a_chat_model_answers_through_its_template():
    """What it writes is what it writes behind the template's tokens; a turn that the template refuses is continued as text."""
    model = tiny_model("llama", n_layers=3)
    (answer,) = generations(model, model, tokenizer=ChatLetters(), prompts=["5 6"], max_new_tokens=7)
    (continued,) = generations(model, model, tokenizer=Letters(), prompts=["20 5 6 21"], max_new_tokens=7)
    assert answer.is_chat and answer.prompt == "5 6" and answer.teacher == continued.teacher
    (plain,) = generations(model, model, tokenizer=ChatLetters(), prompts=["13"], max_new_tokens=7)
    (same,) = generations(model, model, tokenizer=Letters(), prompts=["13"], max_new_tokens=7)
    assert plain == same and not plain.is_chat


def test_impossible_requests_are_refused():
    model = tiny_model("llama", n_layers=2)
    with pytest.raises(ValueError, match="has no token"):
        generations(model, model, tokenizer=Letters(), prompts=[""])
    with pytest.raises(ValueError, match="max_new_tokens=0 needs at least 1"):
        generations(model, model, tokenizer=Letters(), prompts=["1"], max_new_tokens=0)


# -- many prompts at once ------------------------------------------------------------------------------------------------

PROMPTS = [PROMPT_T[:n].tolist() for n in (2, 6, 3, 6, 1)]


def said(model, prompts=PROMPTS, **options):
    return dict(greedy_texts(model, Letters(), prompts, **options))


@pytest.mark.parametrize("family", every_family())
def test_padding_on_the_left_changes_no_token(family):
    """Prompts of different lengths in one batch say what each says on its own, before the end token."""
    model = tiny_model(family, n_layers=3)
    end = model.generation_config.eos_token_id
    alone = [greedy_tokens(model, torch.tensor(prompt), max_new_tokens=8) for prompt in PROMPTS]
    expected = {index: Letters().decode(one[: one.index(end)] if end in one else one) for index, one in enumerate(alone)}
    assert said(model, max_new_tokens=8) == expected
    assert said(model, max_new_tokens=8, tokens_per_batch=1) == expected


def test_a_row_is_done_at_its_stop_string_and_the_others_go_on():
    model = tiny_model("llama", n_layers=3)
    model.generation_config.eos_token_id = None
    free = {index: text.split() for index, text in said(model, max_new_tokens=12).items()}
    stop = f" {free[0][4]}"
    got = said(model, max_new_tokens=12, stop=[stop])
    for index, tokens in free.items():
        texts = [" ".join(tokens[:n]) for n in range(1, 13)]
        until = next((text for text in texts if stop in text), texts[-1])
        assert got[index].startswith(until)  # Whoever asks cuts off what a row says after its stop, while others go on.
    (alone,) = said(model, PROMPTS[:1], max_new_tokens=12, stop=[stop]).values()
    assert alone.endswith(stop) and alone.count(stop) == 1 and got[0].startswith(alone)


def test_nan_is_refused_instead_of_written():
    model = tiny_model("llama", n_layers=2)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match="logits are NaN"):
        said(model, max_new_tokens=4)


def test_a_student_of_a_view_writes_like_the_model_cut_by_hand():
    model = tiny_model("llama", n_layers=4)
    view = DecoderView(model)
    assert model_of(view, TEACHER) is model
    cut = model_of(view, Student(frozenset({Unit("layer", 2)})))
    del model.model.layers[2]
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = index
    model.config.num_hidden_layers = 3
    assert said(cut, max_new_tokens=8) == said(model, max_new_tokens=8)
