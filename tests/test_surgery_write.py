"""Replacements as checkpoints: stock layers where that is exact, else code that comes along and needs no Shoal."""

import json
import subprocess
import sys

import pytest
import torch
from families import FAMILIES, VOCAB, tiny_model
from test_replace_layer import plan_with
from test_replace_modules import shaken

from shoal.checkpoint.verify import verify
from shoal.checkpoint.write import is_bundled, split, write
from shoal.edits.drop import Drop
from shoal.edits.plan import Plan
from shoal.edits.refit import Refit
from shoal.edits.replace.replace_edit import Replace
from shoal.edits.replace.table import REPLACEMENTS, replacement_named
from shoal.edits.student_of import student_of, values_of
from shoal.engine.open import load_strictly
from shoal.engine.opening import Opening
from shoal.engine.view import DecoderView
from shoal.select.model_size import model_size, put_back_of
from shoal.select.plan_of import plan_of
from shoal.words.types import Batch

IDS_BT = torch.randint(3, VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Family -> view of a saved model and its folder."""
    made = {}

    def of(family):
        if family not in made:
            model = tiny_model(family)
            folder = tmp_path_factory.mktemp(family)
            model.save_pretrained(folder)
            made[family] = (DecoderView(model), folder)
        return made[family]

    return of


def trained(view, plan):
    """A student whose replacements have random values, and these values."""
    student = student_of(view, plan)
    for number, one in enumerate(student.attached):
        shaken(one.module, seed=number)
    values = values_of(student.attached)
    return student_of(view, plan, values), values


def written(view, folder, plan, out):
    """Write a trained student; returns it and what was verified against its logits."""
    student, values = trained(view, plan)
    write(view, folder, plan, out, values=values)
    reference = view.logits(Batch(IDS_BT), student=student)
    checked = verify(out, ids_BT=IDS_BT, reference=lambda ids: reference, opening=Opening(trust=is_bundled(view, plan)))
    return student, checked


def replaced(start, stop, name, **options):
    return Replace(start=start, stop=stop, replacement=name, options=options)


# -- code ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_code_reloads_as_the_student_in_every_family(family, source, tmp_path):
    view, folder = source(family)
    plan = plan_with(replaced(1, 3, "swiglu", width=8, layout="code"), replaced(4, 5, "ffn", width=8, layout="code"))
    _, checked = written(view, folder, plan, tmp_path / "out")
    assert checked.logit_difference == 0.0 and checked.layout == "code" and checked.size.layers == 3


@pytest.mark.parametrize("name", [name for name in REPLACEMENTS if "code" in REPLACEMENTS[name].layouts])
def test_every_replacement_has_a_code_layout_and_its_size_is_the_predicted_one(name, source, tmp_path):
    view, folder = source("llama")
    put_back = put_back_of(replacement_named(name, {"layout": "code"}).resolved(view), view.hidden_size)
    plan = plan_of(
        put_back.edits((2, 3)), model_size(view), own_parameters=put_back.own_parameters, source="tiny", source_hash="0"
    )
    _, checked = written(view, folder, plan, tmp_path / "out")
    assert checked.logit_difference == 0.0 and checked.size == plan.after
    assert Plan.from_json(plan.to_json()) == plan


def test_neighbours_share_a_host_in_order_and_mix_with_layers_refits_and_drops(source, tmp_path):
    view, folder = source("llama")
    edits = (
        replaced(1, 2, "layer"), replaced(2, 3, "free"), replaced(3, 4, "hadamard"), Drop(indices=(4,)),
        Refit(layer=5, parameters=("mlp.down_proj.weight",)),
    )  # fmt: skip
    plan = plan_with(*edits)
    values = {"refit.5.mlp.down_proj.weight": torch.randn(32, 48)}
    for number, one in enumerate(student_of(view, plan, values).attached):
        shaken(one.module, seed=number)
        values.update(values_of([one]))
    write(view, folder, plan, tmp_path / "out", values=values)
    student = student_of(view, plan, values)
    checked = verify(
        tmp_path / "out",
        ids_BT=IDS_BT,
        reference=lambda ids: view.logits(Batch(ids), student=student),
        opening=Opening(trust=True),
    )
    assert checked.logit_difference == 0.0 and checked.size.layers == 3
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert [one["kind"] for one in config["replacements"]["1"]] == ["free", "hadamard"]


def test_the_papers_form_and_low_rank_have_a_code_layout(source, tmp_path):
    view, folder = source("llama")
    plan = plan_with(replaced(1, 2, "ffn", form="paper"), replaced(3, 4, "linear", rank=2))
    assert written(view, folder, plan, tmp_path / "out")[1].logit_difference == 0.0


@pytest.mark.parametrize("layers", [2, 3])
def test_several_inherited_layers_are_stock(layers, source, tmp_path):
    view, folder = source("gemma2")
    checked = written(view, folder, plan_with(replaced(1, 5, "layer", layers=layers)), tmp_path / "out")[1]
    assert checked.logit_difference == 0.0 and checked.layout == "stock" and checked.size.layers == 2 + layers


FRESH = """
import sys, json, torch, warnings
warnings.filterwarnings("ignore")
from transformers import AutoModel, AutoModelForCausalLM
assert "shoal" not in sys.modules
out = {}
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    ids = torch.tensor([[5, 9, 7, 3, 11, 4, 8]])
    common = dict(max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    dynamic = model.generate(ids, **common)[0].tolist()
    try:
        static = model.generate(ids, cache_implementation="static", **common)[0].tolist()
    except Exception as error:
        static = repr(error)
    inner = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    states = [one(ids, use_cache=False).last_hidden_state for one in (inner, model.base_model)]
    same = torch.equal(*states)
    refused = False
    try:
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    except ValueError:
        refused = True
    out[folder] = [dynamic, static, same, refused]
try:
    import shoal
    out["shoal"] = True
except ImportError:
    out["shoal"] = False
print(json.dumps(out))
"""


@pytest.mark.slow  # Four models in a process of its own.
def test_a_fresh_process_without_shoal_generates_as_the_student(source, tmp_path):
    """Greedy, with a dynamic and a static cache, against logits recomputed by the student for every token."""
    expected = {}
    for family in ("llama", "gemma2", "mixtral", "gpt_neox"):
        view, folder = source(family)
        plan = plan_with(replaced(1, 3, "swiglu", layout="code"))
        student, _ = written(view, folder, plan, tmp_path / family)
        ids = [5, 9, 7, 3, 11, 4, 8]
        for _ in range(12):
            ids.append(int(view.logits(Batch(torch.tensor([ids])), student=student)[0, -1].argmax()))
        expected[str(tmp_path / family)] = ids
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "PATH": ""}
    run = subprocess.run(
        [sys.executable, "-I", "-c", FRESH, *expected], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    for folder, ids in expected.items():
        dynamic, static, same, refused = found[folder]
        assert dynamic == ids and static == ids, folder
        assert same and refused, folder


# -- stock layers with silent attention ------------------------------------------------------------------------------------

PLAIN_MLP = {"bloom", "gpt2", "gpt_neox", "gptj", "opt", "phi", "starcoder2"}
GATED = {"granite", "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3", "stablelm"}
NO_BIAS = {"falcon"}  # The MLP is plain and has no biases: its ffn is stock, a linear one is not.
STOCK = {"swiglu": GATED, "ffn": PLAIN_MLP | NO_BIAS, "linear": PLAIN_MLP}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_where_a_stock_layer_is_exact_it_is_chosen_and_equals_the_module(family, source, tmp_path):
    view, folder = source(family)
    for name, families in STOCK.items():
        options = {"rank": 8} if name == "linear" else {"width": 20}
        resolved = replacement_named(name, options).resolved(view)
        assert resolved.layout == ("stock" if family in families else "code"), name
        if resolved.layout == "stock":
            plan = plan_with(replaced(2, 4, name, **resolved.options()))
            # The logits are within the tolerance: sums are in another order.
            _, checked = written(view, folder, plan, tmp_path / name)
            assert checked.layout == "stock" and checked.size.layers == 5
            assert json.loads((tmp_path / name / "config.json").read_text())["model_type"] == view.model.config.model_type


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_in_half_precision_a_stock_swiglu_has_the_bits_of_the_module(family, tmp_path):
    """Zeros add nothing, and the module's norm rounds where these families' do."""
    tiny_model(family).bfloat16().save_pretrained(tmp_path / "source")
    view = DecoderView(load_strictly(tmp_path / "source"))
    plan = plan_with(replaced(2, 4, "swiglu", width=20, layout="stock"))
    assert written(view, tmp_path / "source", plan, tmp_path / "out")[1].logit_difference == 0.0


def test_a_gated_mlp_with_biases_holds_a_linear_map(tmp_path):
    from transformers import AutoModelForCausalLM

    config = tiny_model("llama").config
    config.mlp_bias = True
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path / "source")
    view = DecoderView(model)
    resolved = replacement_named("linear").resolved(view)
    assert resolved.layout == "stock"
    plan = plan_with(replaced(2, 4, "linear", **resolved.options()))
    assert written(view, tmp_path / "source", plan, tmp_path / "out")[1].layout == "stock"


def test_a_stock_layout_that_is_none_is_refused_with_the_reason(source):
    refusals = {
        ("gemma2", "swiglu"): "a norm after it", ("llama", "ffn"): "gated", ("llama", "linear"): "no biases",
        ("mixtral", "swiglu"): "plain MLP", ("llama", "free"): "without a norm", ("gpt2", "swiglu"): "not gated",
    }  # fmt: skip
    for (family, name), reason in refusals.items():
        with pytest.raises(ValueError, match=f"cannot be written as a stock layer.*{reason}.*layout=code"):
            replacement_named(name, {"layout": "stock"}).resolved(source(family)[0])
    with pytest.raises(ValueError, match="48 hidden units, 49 are needed"):
        replacement_named("swiglu", {"layout": "stock", "width": 49}).resolved(source("llama")[0])


def test_a_plan_by_hand_without_a_layout_is_written_as_the_family_allows(source, tmp_path):
    view, folder = source("llama")
    plan = plan_with(replaced(2, 4, "swiglu"))
    assert not is_bundled(view, plan) and written(view, folder, plan, tmp_path / "out")[1].layout == "stock"


# -- refusals ----------------------------------------------------------------------------------------------------------------


def test_code_needs_a_layer_before_it(source, tmp_path):
    view, folder = source("llama")
    with pytest.raises(ValueError, match="starts at layer 0 and no layer before it is kept"):
        write(view, folder, plan_with(replaced(0, 2, "free")), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert split(view, plan_with(replaced(0, 2, "swiglu")), {}).hosted == {}  # A stock layer stands on its own.


def test_values_left_over_are_refused(source, tmp_path):
    view, folder = source("llama")
    with pytest.raises(ValueError, match="replace.4-5.x"):
        write(view, folder, plan_with(replaced(2, 4, "free")), tmp_path / "out", values={"replace.4-5.x": torch.zeros(1)})


def test_a_model_with_code_of_its_own_cannot_be_extended(source, tmp_path):
    view, folder = source("llama")
    write(view, folder, plan_with(replaced(1, 2, "free")), tmp_path / "once")
    again = DecoderView(load_strictly(tmp_path / "once", trust_remote_code=True))
    assert again.n_layers == 5
    with pytest.raises(ValueError, match="comes with its own code"):
        write(again, tmp_path / "once", plan_with(replaced(3, 4, "free"), n_layers=5), tmp_path / "twice")


def test_a_checkpoint_with_code_can_lose_further_layers(source, tmp_path):
    """Its modules move with the layers they follow, in memory and on disk."""
    view, folder = source("llama")
    student, values = trained(view, plan_with(replaced(2, 3, "free"), replaced(4, 5, "hadamard")))
    write(view, folder, plan_with(replaced(2, 3, "free"), replaced(4, 5, "hadamard")), tmp_path / "once", values=values)
    once = DecoderView(load_strictly(tmp_path / "once", trust_remote_code=True))
    for gone, modules in ((0, {"0", "1"}), (1, {"1"}), (3, {"1", "2"})):  # A layer takes the module that follows it along.
        plan = plan_with(Drop(indices=(gone,)), n_layers=4)
        out = tmp_path / f"without {gone}"
        write(once, tmp_path / "once", plan, out)
        reference = once.logits(Batch(IDS_BT), student=student_of(once, plan))
        checked = verify(out, ids_BT=IDS_BT, reference=lambda ids, logits=reference: logits, opening=Opening(trust=True))
        assert checked.logit_difference == 0.0
        assert set(json.loads((out / "config.json").read_text())["replacements"]) == modules


def test_a_checkpoint_that_does_not_compute_the_student_is_found(source, tmp_path):
    view, folder = source("llama")
    plan = plan_with(replaced(2, 4, "free"))
    student, values = trained(view, plan)
    write(view, folder, plan, tmp_path / "out", values={name: value * 1.1 for name, value in values.items()})
    with pytest.raises(ValueError, match="differ from the student's"):
        verify(
            tmp_path / "out",
            ids_BT=IDS_BT,
            reference=lambda ids: view.logits(Batch(ids), student=student),
            opening=Opening(trust=True),
        )
