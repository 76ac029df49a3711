"""Training that heals: the loss is the objective, the best step is kept, a stopped run goes on as if it had not been."""

import dataclasses
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from heal_world import config, text, world

from shoal.engine.families import find_layers
from shoal.train.heal.arguments import warmup_steps
from shoal.train.heal.losses import HealLoss
from shoal.train.heal.merge import measure, merge_pupil, trained_values
from shoal.train.heal.rates import MOST_TRIALS
from shoal.train.heal.streams import Streams, run_model
from shoal.train.heal.text_rows import IGNORED, TextRows, collate, counted
from shoal.train.heal.train import prepare, steps_of, train
from shoal.train.heal.trainer import DivergedError, StepProgress
from shoal.train.objectives import weighted_sum


def healed(folder, asked, *, family="llama", **changes):
    student, lesson = world(family, **changes)
    pupil = prepare(student, asked, lesson)
    return train(pupil, asked, lesson, folder), pupil, lesson


@pytest.mark.in_turn(3)
@pytest.mark.parametrize("method", ["lora", "full", "norms"])
@pytest.mark.parametrize("objective", ["forward_kl", "next_token", "relative_mse + 0.5*jensen_shannon"])
def test_healing_lowers_what_it_trains_for(method, objective, tmp_path):
    done, _, _ = healed(tmp_path, config(method=method, objective=objective, tokens=288))
    assert done.best.measure(done.decided_by) < done.start.measure(done.decided_by)
    assert done.decided_by == ("nll" if objective == "next_token" else "kl")
    assert done.n_steps == 6 and done.n_tokens == 288
    assert [point.step for point in done.curve] == [0, 2, 4, 6]


def test_the_model_is_left_with_the_values_of_the_best_step(tmp_path):
    done, pupil, lesson = healed(tmp_path, config(lr=0.2, tokens=288))  # The rate is so fast that later steps are worse.
    assert measure(pupil.model, lesson, batch_size=2)["kl"] == pytest.approx(done.best.kl, rel=1e-6)
    assert done.best.kl == min(point.kl for point in done.curve)


def test_step_zero_stands_where_training_only_harms(tmp_path):
    student, lesson = world()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    asked = config(method="full", lr=3.0, warmup=0)
    pupil = prepare(student, asked, lesson)
    done = train(pupil, asked, lesson, tmp_path)
    assert done.best_step == 0
    assert all(torch.equal(value, before[name]) for name, value in pupil.model.state_dict().items())


def test_patience_ends_a_training_that_no_longer_helps(tmp_path):
    done, _, _ = healed(tmp_path, config(method="full", lr=3.0, warmup=0, tokens=288, eval_every=1, patience=2))
    assert done.best_step == 0 and done.n_steps == 2


def test_a_training_that_patience_ended_is_not_trained_on(tmp_path):
    """It was killed before its end was recorded, and is asked for again."""
    asked = config(method="full", lr=3.0, warmup=0, tokens=288, eval_every=1, patience=2)
    ended, pupil, _ = healed(tmp_path, asked)
    again, other, _ = healed(tmp_path, asked)
    assert (again.n_steps, again.best_step, again.curve) == (ended.n_steps, ended.best_step, ended.curve)
    for (name, value), (_, same) in zip(pupil.model.named_parameters(), other.model.named_parameters(), strict=True):
        assert torch.equal(value, same), name


@pytest.mark.parametrize("method", ["norms", "partial", pytest.param("lora", marks=pytest.mark.slow)])
def test_an_fp16_student_is_trained_in_fp32(method, tmp_path):
    student, lesson = world()
    student = student.half()
    asked = config(method=method, layers=1, tokens=96) if method == "partial" else config(method=method, tokens=96)
    pupil = prepare(student, asked, lesson)
    done = train(pupil, asked, lesson, tmp_path)
    assert done.n_steps == 2
    _, model = merge_pupil(pupil, done.best, asked, lesson, tmp_path)
    assert {value.dtype for value in model.parameters()} == {torch.float16}


@pytest.mark.parametrize("method", ["lora", pytest.param("partial", marks=pytest.mark.slow)])
def test_stopped_and_continued_equals_unbroken(method, tmp_path):
    asked = config(method=method, dropout=0.1 if method == "lora" else 0.0, tokens=288)
    unbroken, whole, _ = healed(tmp_path / "unbroken", asked)
    student, lesson = world()
    pupil = prepare(student, asked, lesson)

    def stop_in_the_third_step(done, total):
        if done == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        train(pupil, asked, lesson, tmp_path / "broken", tell=stop_in_the_third_step)
    saved = [path.name for path in (tmp_path / "broken").glob("checkpoint-*")]
    assert saved == ["checkpoint-4"] or saved == ["checkpoint-3"]
    continued, pupil, _ = healed(tmp_path / "broken", asked)
    assert continued.curve == unbroken.curve
    for name, value in trained_values(pupil.model).items():
        assert torch.equal(value, trained_values(whole.model)[name]), name


def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(tmp_path):
    asked = config(tokens=288)
    unbroken, _, _ = healed(tmp_path / "unbroken", asked)
    half = tmp_path / "broken" / "checkpoint-5"  # The process was killed while it wrote the file.
    half.mkdir(parents=True)
    (half / "trainable.safetensors").write_bytes(b"")
    assert healed(tmp_path / "broken", asked)[0].curve == unbroken.curve


def test_a_finished_training_is_not_repeated(tmp_path):
    first, _, _ = healed(tmp_path, config())
    seen = []
    student, lesson = world()
    pupil = prepare(student, config(), lesson)
    again = train(pupil, config(), lesson, tmp_path, tell=lambda done, total: seen.append(done))
    assert again.curve == first.curve and not seen


def test_pieces_of_a_padded_batch_weigh_by_their_tokens(tmp_path):
    asked = config(method="full", objective="next_token + forward_kl", tokens=96, lr=1e-3)
    whole, a, _ = healed(tmp_path / "1", asked.model_copy(update={"micro_batch": 4}), padded=True)
    pieces, b, _ = healed(tmp_path / "2", asked.model_copy(update={"micro_batch": 1}), padded=True)
    # The same sums in another order.
    for first, second in zip(whole.curve[1:], pieces.curve[1:], strict=True):
        assert first.loss == pytest.approx(second.loss, rel=1e-5)
    for (name, x), (_, y) in zip(a.model.named_parameters(), b.model.named_parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("objective", ["hidden_mse", "forward_kl"])
def test_a_term_weighs_by_the_tokens_it_counts(objective, tmp_path):
    """Answers of one token and of ten: logits count answers, states all tokens, whatever a piece of the batch holds."""

    def answers(seed):
        rows = text(4, seed=seed)
        predicted_NT = torch.zeros_like(rows.ids_NT, dtype=torch.bool)
        predicted_NT[::2, 2:] = predicted_NT[1::2, -1:] = True
        return dataclasses.replace(rows, predicted_NT=predicted_NT)

    def loss(micro_batch):
        student, lesson = world()
        lesson = dataclasses.replace(lesson, training=answers(0), selection=answers(1))
        asked = config(method="norms", objective=objective, tokens=48, micro_batch=micro_batch, eval_every=1)
        return train(prepare(student, asked, lesson), asked, lesson, tmp_path / str(micro_batch)).curve[-1].loss

    assert loss(4) == pytest.approx(loss(1), rel=1e-5)


def test_recomputed_activations_change_nothing(tmp_path):
    asked = config(objective="relative_mse + forward_kl", tokens=96)
    plain, _, _ = healed(tmp_path / "1", asked)
    again, _, _ = healed(tmp_path / "2", asked.model_copy(update={"checkpointing": True}))
    assert [point.kl for point in again.curve] == pytest.approx([point.kl for point in plain.curve], rel=1e-6)


def test_a_bf16_student_is_trained_in_fp32_and_stays_bf16(tmp_path):
    from shoal.train.heal.merge import merge_pupil

    student, lesson = world()
    asked = config(method="full", lr=1e-3)
    pupil = prepare(student.bfloat16(), asked, lesson)
    assert {p.dtype for p in pupil.model.parameters()} == {torch.float32} and pupil.in_bf16
    done = train(pupil, asked, lesson, tmp_path)
    merging, model = merge_pupil(pupil, done.best, asked, lesson, tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert merging.way == "none" and len(merging.trials) == 1


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_a_dtype_that_is_asked_for_is_computed_in_and_the_checkpoint_keeps_its_own(method, tmp_path):
    """``--dtype float32`` trains a bf16 student as if its checkpoint were fp32; ``bfloat16`` an fp32 student in bf16."""
    from shoal.train.heal.merge import merge_pupil

    asked = config(method=method, lr=1e-3)
    done = {}
    for computes_in in (None, "float32", "bfloat16"):
        student, lesson = world()
        pupil = prepare(student.bfloat16(), asked, lesson, computes_in=computes_in)
        assert pupil.in_bf16 is (computes_in != "float32")
        found = train(pupil, asked, lesson, tmp_path / str(computes_in))
        done[computes_in] = found.curve
        _, model = merge_pupil(pupil, found.best, asked, lesson, tmp_path)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    student, lesson = world()
    whole = train(prepare(student.bfloat16().float(), asked, lesson), asked, lesson, tmp_path / "fp32").curve
    assert done["float32"] == whole and done["bfloat16"] == done[None] != whole
    assert prepare(world()[0], asked, lesson, computes_in="bfloat16").in_bf16


# -- learning rates ------------------------------------------------------------------------------------------------------


def test_a_rate_is_found_by_short_runs_from_one_start(tmp_path):
    asked = config(lr="auto", tokens=192)
    done, pupil, lesson = healed(tmp_path, asked)
    tried = [one.lr for one in done.rates]
    assert len(tried) == MOST_TRIALS or tried[0] < done.lr < tried[-1]  # the search goes on beyond an end that is the best
    assert done.rates[tried.index(done.lr)].measure == min(one.measure for one in done.rates)
    fixed, _, _ = healed(tmp_path / "fixed", asked.model_copy(update={"lr": done.lr}))
    assert fixed.curve == done.curve  # The trials leave no trace.


def test_a_rate_that_diverges_is_said_so(tmp_path):
    with pytest.raises(DivergedError, match="lower --lr"):
        healed(tmp_path, config(method="full", lr=1e30, warmup=0))


# -- parts ---------------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_sum_of_naive_means():
    torch.manual_seed(0)
    rows = text(5, padded=True)
    batch = rows.batches(5)[0]
    b, t = batch["input_ids"].shape
    ours, theirs = (Streams(torch.randn(b, t, 61), {2: torch.randn(b, t, 8), 4: torch.randn(b, t, 8)}) for _ in range(2))
    loss = HealLoss(weighted_sum("next_token + 0.5*forward_kl + 2*hidden_mse"), ((2, 4),))
    nll = kl = mse = n = m = 0.0
    for i in range(b):
        length = int(rows.lengths_N[i])
        for j in range(length):
            mse += float((ours.states[2][i, j] - theirs.states[4][i, j]).square().mean())
            m += 1
            if j + 1 < length:
                p, q = theirs.logits_BTV[i, j].log_softmax(-1), ours.logits_BTV[i, j].log_softmax(-1)
                nll -= float(q[batch["input_ids"][i, j + 1]])
                kl += float((p.exp() * (p - q)).sum())
                n += 1
    assert float(loss(ours, theirs, batch)) == pytest.approx(nll / n + 0.5 * kl / n + 2 * mse / m, rel=1e-5)


def test_only_labels_are_predicted():
    rows = text(3)
    answers = torch.zeros_like(rows.ids_NT, dtype=torch.bool)
    answers[:, 6:] = True
    batch = dataclasses.replace(rows, predicted_NT=answers).batches(3)[0]
    assert counted(batch["labels"]).sum() == 3 * 6
    assert set(batch["labels"][:, :6].flatten().tolist()) == {IGNORED}


def test_taps_are_the_states_at_the_boundaries():
    student, lesson = world("gemma2")
    layers = list(find_layers(student)[1])
    batch = lesson.selection.batches(4)[0]
    with torch.no_grad():
        found = run_model(student, layers, batch, (0, 2, 4))
        again = run_model(student, layers, batch)
    assert set(found.states) == {0, 2, 4} and not again.states
    assert torch.equal(found.logits_BTV, again.logits_BTV)
    with torch.no_grad():
        hidden = student.model.norm(found.states[4])
    expected = student(input_ids=batch["input_ids"], use_cache=False).logits
    assert torch.equal(torch.tanh(student.lm_head(hidden) / 30.0) * 30.0, expected)


def test_a_batch_is_cut_to_its_longest_sample_and_masks_padding():
    rows = TextRows(torch.arange(12).reshape(2, 6), torch.tensor([3, 4]), None, "", "")
    batch = collate([rows[0], rows[1]])
    assert batch["input_ids"].tolist() == [[0, 1, 2, 0], [6, 7, 8, 9]]
    assert batch["attention_mask"].tolist() == [[True] * 3 + [False], [True] * 4]
    assert "attention_mask" not in collate([rows[0]])


def test_steps_are_whole_and_the_text_has_to_hold_them():
    rows = text(10, 12)
    assert steps_of(config(tokens=None), rows) == 2
    assert steps_of(config(tokens=100), rows) == 2
    with pytest.raises(ValueError, match="hold 120 tokens"):
        steps_of(config(tokens=121), rows)
    with pytest.raises(ValueError, match="less than one step"):
        steps_of(config(tokens=20), rows)
    with pytest.raises(ValueError, match="less than one step"):
        steps_of(config(tokens=None), text(3, 12))


def test_a_papers_warm_up_is_a_tenth_of_a_short_training():
    """Its hundred steps were all of it, and the learning rate that was said was never reached."""
    assert [warmup_steps(config(warmup=100), n) for n in (5000, 1000, 400, 5)] == [100, 100, 40, 1]
    assert warmup_steps(config(warmup=0.05), 5) == 0.05 and warmup_steps(config(warmup=0), 5) == 0


def test_hidden_objectives_need_the_cut_and_all_but_text_need_a_teacher():
    _, lesson = world()
    with pytest.raises(ValueError, match="--plan"):
        dataclasses.replace(lesson, cut=None).loss(config(objective="hidden_mse"))
    with pytest.raises(ValueError, match="--teacher"):
        dataclasses.replace(lesson, teacher=None).loss(config(objective="forward_kl"))
    assert lesson.loss(config(objective="hidden_mse")).pairs == ((2, 4),)
    assert lesson.loss(config(objective="hidden_mse", boundaries="every")).pairs == ((1, 1), (2, 4), (3, 5), (4, 6))


def test_the_time_of_a_step_does_not_count_the_validation_before_it():
    """The first report is at the beginning of the first step, where the student has been validated; a resumed one counts on."""
    said: list[tuple[int, int]] = []
    watch, steps = StepProgress(lambda done, total: said.append((done, total))), SimpleNamespace(global_step=3, max_steps=5)
    watch.on_train_begin(None, steps, None)
    assert said == []
    for done in (4, 5):
        watch.on_step_begin(None, steps, None)
        steps.global_step = done
        watch.on_step_end(None, steps, None)
    assert said == [(3, 5), (4, 5), (5, 5)]
