"""Parts of healing: cached teachers, masks, pruned adapters, 4 bits, presets."""

import dataclasses
import errno
import os
from types import SimpleNamespace

import pytest
import torch
from families import tiny_model
from heal_world import KEPT, config, student_of, text, world, write_wide

from shoal.engine.open import load_strictly
from shoal.train.heal.config import HealConfig
from shoal.train.heal.cut_place import CutPlace
from shoal.train.heal.losses import HealLoss
from shoal.train.heal.masks import zero_masks
from shoal.train.heal.merge import adopt_values, measure, merge_pupil, trained_values
from shoal.train.heal.presets import PRESETS, UIDL_MODELS
from shoal.train.heal.pruned_adapters import PruneAdapters, pruned
from shoal.train.heal.qlora import open_in_4_bits, out_of_4_bits
from shoal.train.heal.rates import find_rate
from shoal.train.heal.streams import Streams, run_model
from shoal.train.heal.teacher_cache import CacheProgress, bytes_per_token, cut_off, fill_cache
from shoal.train.heal.teachers import RunningTeacher
from shoal.train.heal.train import Lesson, open_pupil, prepare, train
from shoal.train.objectives import weighted_sum


def healed(folder, asked, **changes):
    student, lesson = world(**changes)
    pupil = prepare(student, asked, lesson)
    return train(pupil, asked, lesson, folder), pupil, lesson


# -- the teacher on disk ---------------------------------------------------------------------------------------------------


def test_a_cache_of_the_whole_vocabulary_is_the_full_loss(tmp_path):
    full, _, _ = healed(tmp_path / "full", config(tokens=192))
    cached, _, _ = healed(tmp_path / "cached", config(tokens=192, teacher_cache=61))
    # Log-probabilities on disk have the ten bits of fp16.
    for one, other in zip(full.curve[1:], cached.curve[1:], strict=True):
        assert other.loss == pytest.approx(one.loss, rel=2e-3, abs=2e-5)
    assert cached.cached.objective_cached == pytest.approx(cached.cached.objective, rel=2e-3, abs=2e-5)


def test_the_cache_is_exact_for_the_objective_that_reads_its_tokens_alone():
    torch.manual_seed(0)
    batch = text(4, padded=True).batches(4)[0]
    shape = (*batch["input_ids"].shape, 61)
    student, teacher = (Streams(3 * torch.randn(shape), {}) for _ in range(2))
    exact = HealLoss(weighted_sum("topk_forward_kl(5)"))
    assert float(exact(student, cut_off(teacher, 5), batch)) == pytest.approx(float(exact(student, teacher, batch)), rel=2e-3)
    other = HealLoss(weighted_sum("forward_kl"))
    assert float(other(student, cut_off(teacher, 5), batch)) != pytest.approx(float(other(student, teacher, batch)), rel=2e-3)


def test_what_the_cache_spreads_is_a_distribution():
    torch.manual_seed(0)
    teacher = Streams(20 * torch.randn(2, 3, 61), {})
    found = cut_off(teacher, 4).logits_BTV
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, 3), rtol=2e-3, atol=0)
    assert torch.isfinite(found).all()


def test_a_cache_that_was_begun_is_finished(tmp_path):
    _, lesson = world()
    rows = text(20, padded=True)
    asked = dict(k=6, n_vocabulary=61, key="a")
    whole = fill_cache(tmp_path / "whole", lesson.teacher, rows, **asked)
    calls = []

    class Counting:
        def training(self, batch, boundaries):
            calls.append(len(batch["index"]))
            if len(calls) == 2 and not (tmp_path / "resumed").exists():
                raise KeyboardInterrupt
            return lesson.teacher.training(batch, boundaries)

    with pytest.raises(KeyboardInterrupt):
        fill_cache(tmp_path / "broken", Counting(), rows, **asked)
    assert CacheProgress.load(tmp_path / "broken" / "done.json").n_samples == 8
    (tmp_path / "resumed").touch()
    again = fill_cache(tmp_path / "broken", Counting(), rows, **asked)
    assert calls == [8, 8, 8, 4]
    assert (again.ids_NTK == whole.ids_NTK).all() and (again.logs_NTK == whole.logs_NTK).all()


def test_a_cache_takes_its_room_before_it_is_filled(tmp_path, monkeypatch):
    """A write into a file that a full disk cannot hold ends the process without a word."""
    _, lesson = world()
    rows = text(20)
    made = fill_cache(tmp_path / "cache", lesson.teacher, rows, k=6, n_vocabulary=61, key="a")
    assert made.n_bytes == rows.ids_NT.numel() * bytes_per_token(6, 61)

    def full(*words):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="No space"):
        fill_cache(tmp_path / "other", None, rows, k=6, n_vocabulary=61, key="a")


def test_a_cache_says_what_it_cannot_serve():
    _, lesson = world()
    for objective, said in (("hidden_mse", "hidden states"), ("next_token", "is not read")):
        with pytest.raises(ValueError, match=said):
            lesson.loss(config(objective=objective, teacher_cache=4))


# -- zeros that stay -------------------------------------------------------------------------------------------------------


def with_zeros(student):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.ndim == 2:
                parameter.mul_(torch.rand_like(parameter) > 0.5)
    return student


@pytest.mark.parametrize("method", ["lora", "full"])
def test_zeros_stay_through_training_and_merge(method, tmp_path):
    student, lesson = world()
    masks = zero_masks(with_zeros(student))
    asked = config(method=method, keep_zeros=True)
    pupil = prepare(student, asked, lesson)
    done = train(pupil, asked, lesson, tmp_path)
    assert done.best_step > 0
    merging, model = merge_pupil(pupil, done.best, asked, lesson, tmp_path)
    for name, parameter in model.named_parameters():
        if name in masks:
            assert not parameter[~masks[name]].any(), name
    # The adapter was trained behind the mask, so the merged model is the trained one.
    assert measure(model, lesson, batch_size=2)["kl"] == pytest.approx(merging.kl, rel=1e-4)


def test_without_the_mask_a_merge_fills_zeros(tmp_path):
    student, lesson = world()
    masks = zero_masks(with_zeros(student))
    asked = config()
    pupil = prepare(student, asked, lesson)
    done = train(pupil, asked, lesson, tmp_path)
    _, model = merge_pupil(pupil, done.best, asked, lesson, tmp_path)
    assert any(parameter[~masks[name]].any() for name, parameter in model.named_parameters() if name in masks)


def test_trials_of_a_rate_leave_no_zeros_behind_that_they_moved(tmp_path, monkeypatch):
    monkeypatch.setattr("shoal.train.heal.rates.FEWEST_STEPS", 2)
    student, lesson = world()
    asked = config(method="full", keep_zeros=True, regrow=0.5, regrow_every=1, lr="auto", tokens=96)
    pupil = prepare(with_zeros(student), asked, lesson)
    weights = {name: value.clone() for name, value in pupil.model.named_parameters()}
    find_rate(pupil, asked, lesson, tmp_path, device="cpu")
    assert all(torch.equal(mask, weights[name] != 0) for name, mask in pupil.masks.items())
    assert all(torch.equal(value, weights[name]) for name, value in pupil.model.named_parameters())


def test_a_dense_student_has_no_zeros_to_keep():
    student, lesson = world()
    with pytest.raises(ValueError, match="no zero"):
        prepare(student, config(keep_zeros=True), lesson)


# -- adapters that are pruned ----------------------------------------------------------------------------------------------


def test_pruning_zeroes_the_lowest_products_as_a_sort_would():
    torch.manual_seed(0)
    a, norms = torch.randn(3, 5), torch.rand(5)
    found = pruned(a, norms, 0.4)
    score = (a.abs() * norms).flatten().tolist()
    lowest = sorted(range(15), key=lambda i: score[i])[:6]
    expected = a.clone().flatten()
    expected[lowest] = 0
    assert torch.equal(found, expected.reshape(3, 5))


def test_pruned_by_nothing_is_plain_lora_bit_for_bit(tmp_path):
    plain, a, _ = healed(tmp_path / "1", config())
    same, b, _ = healed(tmp_path / "2", config(pruned=0.01, prune_every=1))  # 1 % of 128 entries is one
    none, c, _ = healed(tmp_path / "3", config(pruned=1e-9, prune_every=1))
    assert none.curve == plain.curve and same.curve != plain.curve
    for name, value in trained_values(a.model).items():
        assert torch.equal(value, trained_values(c.model)[name])


def test_an_adapter_that_nothing_ran_through_is_left_as_it_is():
    """An expert may get no token for a while."""
    student, lesson = world()
    pupil = prepare(student, config(pruned=0.5, prune_every=1), lesson)
    before = trained_values(pupil.model)
    watcher = PruneAdapters(pupil.model, share=0.5, every=1, decay=0.9)
    watcher.on_optimizer_step(SimpleNamespace(world_size=1), SimpleNamespace(global_step=0), None)
    assert all(torch.equal(value, before[name]) for name, value in trained_values(pupil.model).items())


def test_half_of_every_a_is_zero_behind_a_pruning_step(tmp_path):
    _, pupil, _ = healed(tmp_path, config(pruned=0.5, prune_every=4, tokens=192))
    shares = [(m.weight == 0).float().mean() for n, m in pupil.model.named_modules() if n.endswith("lora_A.default")]
    assert shares and all(share == 0.5 for share in shares)


# -- 4 bits ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return write_wide(tmp_path_factory.mktemp("quantised") / "student")


def test_qlora_trains_beside_4_bits_and_merges_three_ways(saved, tmp_path):
    lesson = Lesson(text(24), text(8, seed=1))
    asked = config(method="qlora", objective="next_token")
    pupil = open_pupil(saved, asked, lesson)
    plain = load_strictly(saved)
    assert pupil.n_parameters == sum(p.numel() for p in plain.parameters())
    assert pupil.n_trainable == prepare(plain, config(objective="next_token"), lesson).n_trainable
    done = train(pupil, asked, lesson, tmp_path)
    assert done.best.nll < done.start.nll
    values = trained_values(pupil.model)
    merging, model = merge_pupil(pupil, done.best, asked, lesson, saved)
    assert {one.way for one in merging.trials} == {"original", "dequantised"}
    assert merging.taken.lost == min(one.lost for one in merging.trials)
    dequantised = next(one for one in merging.trials if one.way == "dequantised")
    # What the adapters were trained beside, but for the bf16 of the 4-bit product.
    assert dequantised.nll == pytest.approx(merging.nll, rel=1e-3)
    other = open_pupil(saved, asked, lesson)
    adopt_values(other.model, values)
    assert merge_pupil(other, done.best, asked.model_copy(update={"merge": "apart"}), lesson, saved)[1] is None


def test_ranks_that_were_found_beside_4_bits_are_those_of_the_merge(tmp_path):
    """The damage of each layer is another beside the whole weights, and so would be the ranks."""
    path = write_wide(tmp_path / "teacher", n_layers=6)
    whole = load_strictly(path)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.mul_(3 if parameter.ndim == 2 else 1)
    student_of(whole).save_pretrained(tmp_path / "student")
    lesson = Lesson(text(24), text(8, seed=1), RunningTeacher(whole), CutPlace.of_kept(KEPT, 6))
    asked = config(method="qlora", rank=8, ranks="from_scores", tokens=48)
    pupil = open_pupil(tmp_path / "student", asked, lesson)
    assert pupil.ranks != prepare(load_strictly(tmp_path / "student"), asked, lesson).ranks, "the case tells nothing"
    done = train(pupil, asked, lesson, tmp_path / "work")
    merging, model = merge_pupil(pupil, done.best, asked, lesson, tmp_path / "student")
    assert model is not None and len(merging.trials) == 2


def test_out_of_4_bits_are_the_numbers_that_the_product_uses(saved):
    plain, found, packed = load_strictly(saved), out_of_4_bits(saved), open_in_4_bits(saved)
    for (name, a), (_, b) in zip(plain.named_parameters(), found.named_parameters(), strict=True):
        if "layers" in name and a.ndim == 2:
            assert not torch.equal(a, b)
            module = packed.get_submodule(name.removesuffix(".weight"))
            # The product with the packed weights is computed in bf16.
            torch.testing.assert_close(module(torch.eye(a.shape[1])).T, b, rtol=1e-2, atol=1e-3)
        else:
            assert torch.equal(a, b)


def test_gradients_run_through_4_bits_after_a_validation(saved):
    lesson, batch = Lesson(text(24), text(8, seed=1)), text(4).batches(4)[0]

    def gradients(model, method):
        pupil = prepare(model, config(method=method, objective="next_token"), lesson)
        measure(pupil.model.eval(), lesson, batch_size=4)  # A forward without gradients comes first, as in every training.
        lesson.loss(config(objective="next_token"))(run_model(pupil.model.train(), pupil.layers, batch), None, batch).backward()
        return {name: p.grad for name, p in pupil.model.named_parameters() if p.requires_grad and "lora_B" in name}

    packed, plain = gradients(open_in_4_bits(saved), "qlora"), gradients(out_of_4_bits(saved), "lora")
    assert packed.keys() == plain.keys()
    for name, value in plain.items():  # The product of the 4-bit weights is computed in bf16, forward and backward.
        assert torch.nn.functional.cosine_similarity(packed[name].flatten(), value.flatten(), dim=0) > 0.99, name


def test_narrow_maps_are_refused_in_4_bits_on_a_cpu(tmp_path):
    student_of(tiny_model("llama")).save_pretrained(tmp_path / "narrow")
    with pytest.raises(ValueError, match="multiple of 64 inputs.*--method lora"):
        open_in_4_bits(tmp_path / "narrow")


def test_values_of_another_method_are_refused():
    student, lesson = world()
    pupil = prepare(student, config(), lesson)
    values = trained_values(pupil.model)
    other = prepare(world()[0], config(rank=2), lesson)
    with pytest.raises(ValueError, match="another model or method"):
        adopt_values(other.model, values)


# -- presets ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_configurations(name):
    changes = {"micro_batch": 4, **PRESETS.named(name).for_model("meta-llama/Llama-2-7b-hf")}
    assert config(**changes).objective == "next_token"
    assert PRESETS.named(name).paper


def test_uidl_has_the_ranks_and_rates_of_the_papers_table():
    uidl = PRESETS["uidl"]
    found = uidl.for_model("mistralai/Mistral-7B-v0.1")
    assert (found["lr"], found["rank"], found["targets"], found["dropout"]) == (3e-6, 4, "mlp", 0.05)
    assert uidl.for_model("other")["rank"] == 64
    assert len(UIDL_MODELS) == 7


def test_a_teacher_of_another_kind_has_the_same_answers():
    _, lesson = world()
    batch = lesson.selection.batches(2)[0]
    assert torch.equal(lesson.teacher.selection(batch), lesson.teacher.training(batch, (1, 3)).logits_BTV)
    assert dataclasses.replace(lesson, teacher=None).decided_by(config(objective="next_token")) == "nll"


@pytest.mark.parametrize(
    ("n_tokens", "length", "expected"),
    [
        (98_304, 1024, 512), (98_303, 1024, 256), (49_152, 1024, 256), (10, 1024, 256), (10**6, 1024, 1024), (98_304, 256, 256),
        (10, 300, 300), (10, 511, 511), (10, 1022, 511), (10, 16, 16), (10, 4096, 256),
    ],
)  # fmt: skip
def test_samples_are_short_where_the_text_gives_few_steps(n_tokens, length, expected):
    """Halved until there are 192 steps of one sample, but 256 tokens at least; a batch that is asked for leaves them alone."""
    assert HealConfig().sample_length(n_tokens, length) == expected
    assert HealConfig(batch=8).sample_length(n_tokens, length) == length


@pytest.mark.parametrize("n_processes", [1, 2, 3, 4])
@pytest.mark.parametrize("per_sample", [16, 100, 128, 256, 511, 512, 4096])
@pytest.mark.parametrize("n_samples", [1, 191, 192, 383, 384, 767, 768, 1535, 1536, 10_000])
def test_a_batch_leaves_enough_steps_where_none_is_asked_for(n_samples, per_sample, n_processes):
    """The largest of 8, 4, 2, 1 with 192 steps, or the smallest with 512 tokens; whole samples per process; pieces fill it."""
    found = HealConfig().settled(n_samples, per_sample, n_processes)
    assert found.batch % n_processes == 0 and (found.batch // n_processes) % found.micro_batch == 0
    large = [b for b in (8, 4, 2, 1) if b == 8 or b * per_sample >= 512]
    enough = next((b for b in large if n_samples >= 192 * b), large[-1])
    assert found.batch == max(n_processes, enough // n_processes * n_processes)
    asked = HealConfig(batch=12, micro_batch=8).settled(n_samples, per_sample, n_processes)
    assert (asked.batch, asked.micro_batch) == (12, {1: 6, 2: 6, 3: 4, 4: 3}[n_processes])
    with pytest.raises(ValueError, match="batch=7 needs to be a multiple of the 2 processes"):
        HealConfig(batch=7).settled(n_samples, per_sample, 2)
