"""What engines make of files and folders, against transformers: exact in single precision, and a wrong file is seen.

llama.cpp is a package of 34 MB that `make test` installs into an environment of its own, so its part is in the gate; without it
the tests are skipped and say so. The other engines are slow tests (`make prove`).
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from families import tiny_config
from gguf_files import keys_of
from gguf_world import tiny_llama
from safetensors.torch import load_file
from test_export_table import PLAIN, plain_model, run_folder, zeroed
from test_export_table import uneven as uneven
from transformers import AutoModelForCausalLM

import shoal as package
from shoal.edits.drop import Drop
from shoal.edits.refit import Refit
from shoal.export.engines.table import ENGINES
from shoal.export.exporter import Options
from shoal.export.gguf import layers
from shoal.export.gguf.cut_file import cut_gguf
from shoal.export.prove import prove
from shoal.export.table import export

BUNDLED = Path(package.__file__).parent / "assets" / "books-16l"
HOME = Path(__file__).parents[1] / ".prove"
if HOME.is_dir():
    os.environ.setdefault("SHOAL_ENGINES", str(HOME))
SERVING = (Path(__file__).parents[1] / "docs" / "serving.md").read_text()
GONE = (1, 3)
LEFT = [layer for layer in range(12) if layer not in GONE]


pytestmark = pytest.mark.usefixtures("transformers_answers_here")


def installed(name):
    there = bool(os.environ.get("SHOAL_ENGINES")) and ENGINES[name].interpreter() is not None
    return pytest.mark.skipif(not there, reason=f"{name} is not installed: {ENGINES[name].install}")


def proof(file, against, engine="llama.cpp", **options):
    return next(prove(file, against, [ENGINES[engine]], **options))


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    """The bundled model without two layers and with a refitted map: its teacher's file, and the run's folder."""
    folder = tmp_path_factory.mktemp("bundled")
    name = "mlp.down_proj.weight"
    value = 1.2 * load_file(BUNDLED / "model.safetensors")[f"model.layers.4.{name}"]
    edits = (Drop(indices=(5, 6)), Refit(layer=4, parameters=(name,)))
    run_folder(BUNDLED, folder / "plain", edits[0], n_layers=16)
    run_folder(BUNDLED, folder / "refitted", *edits, values={f"refit.4.{name}": value}, n_layers=16)
    export("gguf", BUNDLED, folder / "teacher.gguf", Options(kind="f32"))
    return folder


KEPT = [layer for layer in range(16) if layer not in (5, 6)]


@installed("llama.cpp")
class TestLlamaCpp:
    """What llama.cpp makes of files."""

    def test_a_file_that_was_cut(self, bundled, tmp_path):
        cut = cut_gguf(bundled / "teacher.gguf", KEPT, tmp_path / "cut.gguf").path
        found = proof(cut, bundled / "plain" / "model")
        assert found.verdict == "agrees" and found.found.kl < 1e-4 and found.found.same_top == 1.0
        assert found.found.n_same_greedy == 16 and found.found.n_same_texts == 25

    def test_a_student_that_was_grafted(self, bundled, tmp_path):
        done = export("gguf", bundled / "refitted", tmp_path / "m.gguf", Options(like=bundled / "teacher.gguf", kind="f32"))
        assert done.checked["new"] == 1
        found = proof(done.path, bundled / "refitted" / "model")
        assert found.verdict == "agrees" and found.found.n_same_greedy == 16 and found.found.n_same_texts == 25

    def test_a_layer_too_few_is_seen(self, bundled, tmp_path):
        wrong = cut_gguf(bundled / "teacher.gguf", KEPT[:-1], tmp_path / "wrong.gguf").path
        found = proof(wrong, bundled / "plain" / "model")
        assert found.is_wrong and found.found.kl > 1e-2

    def test_values_that_were_not_grafted_are_seen(self, bundled, tmp_path):
        plain = cut_gguf(bundled / "teacher.gguf", KEPT, tmp_path / "plain.gguf").path
        assert proof(plain, bundled / "refitted" / "model").is_wrong

    @pytest.mark.slow
    def test_a_file_that_was_written(self, bundled, tmp_path):
        written = export("gguf", bundled / "refitted", tmp_path / "written.gguf", Options(kind="f32")).path
        assert proof(written, bundled / "refitted" / "model").verdict == "agrees"

    @pytest.mark.slow
    def test_a_quantised_cut_against_the_noise_of_its_format(self, tmp_path):
        teacher = export("gguf", BUNDLED, tmp_path / "teacher.gguf", Options(kind="q4_1")).path
        cut = cut_gguf(teacher, KEPT, tmp_path / "cut.gguf").path
        found = proof(cut, cut, uncut=teacher)
        assert found.verdict == "agrees" and found.uncut.kl > 0

    @pytest.mark.slow
    @pytest.mark.parametrize("family", sorted(PLAIN))
    def test_families_written_here(self, family, tmp_path):
        plain_model(family, tmp_path / "m")
        file = with_single_bytes("gguf", tmp_path / "m", tmp_path / "m.gguf")
        assert proof(file, tmp_path / "m").verdict == "agrees"

    def test_windows_that_follow_no_period(self, windowed, tmp_path):
        teacher, run = windowed
        cut = cut_gguf(teacher, LEFT, tmp_path / "cut.gguf").path
        found = proof(cut, run / "model")
        assert found.verdict == "agrees" and found.found.kl < 1e-4

    def test_windows_that_are_not_listed_are_seen(self, windowed, tmp_path, monkeypatch):
        """The file as it would be if nothing but tensors and counts were cut: engines take the old period."""
        teacher, run = windowed
        monkeypatch.setattr(layers, "_write_pattern", lambda *words: None)
        wrong = cut_gguf(teacher, LEFT, tmp_path / "wrong.gguf").path
        found = proof(wrong, run / "model")
        assert found.is_wrong and found.found.kl > 1e-3

    def test_layers_without_attention_or_mlp(self, tmp_path):
        tiny_llama(6).save_pretrained(tmp_path / "even")
        folder = zeroed(tmp_path / "even", tmp_path / "uneven")
        file = with_single_bytes("blocks", folder, tmp_path / "m.gguf")
        assert proof(file, folder).verdict == "agrees"


@pytest.fixture(scope="module")
def windowed(tmp_path_factory):
    """A Gemma 3 with its period of six as a file, and the run's folder without two layers, which no period describes."""
    folder = tmp_path_factory.mktemp("windowed")
    config = tiny_config("gemma3_text")
    config.update(
        {"num_hidden_layers": 12, "layer_types": [*5 * ["sliding_attention"], "full_attention"] * 2, "sliding_window": 4}
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # Attention has to matter, or a wrong window would hardly show.
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2 if parameter.ndim > 1 else 0.1)
    model.save_pretrained(folder / "m")
    teacher = with_single_bytes("gguf", folder / "m", folder / "teacher.gguf")
    assert "gemma3.attention.sliding_window_pattern" not in keys_of(teacher)
    return teacher, run_folder(folder / "m", folder / "run", Drop(indices=GONE), n_layers=12)


def with_single_bytes(form, folder, file):
    """Export a folder with single bytes as tokens, because llama.cpp serves no model without a tokenizer; compared by ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    n = json.loads((folder / "config.json").read_text())["vocab_size"]
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(f"<{i}>" for i in range(n))][: n - 1]
    tokenizer = Tokenizer(models.BPE(vocab={**{t: i for i, t in enumerate(tokens)}, "<end>": n - 1}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    done = export(form, folder, file, Options(kind="f32"))
    (folder / "tokenizer.json").unlink()
    return done.path


FOLDERS = [name for name, one in ENGINES.items() if "folder" in one.reads]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "refitted"])
@pytest.mark.parametrize("engine", [pytest.param(name, marks=installed(name)) for name in FOLDERS])
def test_a_folder_in_every_engine(engine, kind, bundled):
    found = proof(bundled / kind / "model", bundled / kind / "model", engine)
    assert found.verdict == "agrees" and found.found.n_same_greedy == 16


@pytest.mark.slow
@pytest.mark.parametrize("engine", [pytest.param(name, marks=installed(name)) for name in ("vllm", "mlx")])
def test_layers_without_attention_or_mlp_as_a_folder(engine, uneven, tmp_path):
    blocks = export("blocks", uneven, tmp_path / "blocks", Options()).path
    assert proof(blocks, uneven, engine, trust_remote_code=True).verdict == "agrees"


@pytest.mark.slow
@installed("openvino")
def test_a_file_in_openvino(bundled, tmp_path):
    """Half precision: it reads no file in single precision."""
    written = export("gguf", bundled / "plain", tmp_path / "written.gguf", Options(kind="f16")).path
    assert proof(written, bundled / "plain" / "model", "openvino").verdict == "agrees"


COMMANDS = dict(re.findall(r"^\| `([\w.-]+)` \| `(.+)` \|$", SERVING.split("**A command for each**")[1], re.MULTILINE))


def test_the_page_has_a_command_for_every_engine():
    assert set(COMMANDS) == set(ENGINES) - {"transformers-4"}


@pytest.mark.slow
@pytest.mark.parametrize("engine", [pytest.param(name, marks=installed(name)) for name in COMMANDS])
def test_the_command_of_the_page_serves_the_student(engine, bundled, tmp_path):
    (tmp_path / "DIR").symlink_to(bundled / "plain")
    export("gguf", bundled / "plain", tmp_path / "student.gguf", Options(kind="f16"))
    paths = os.pathsep.join([str(Path(ENGINES[engine].interpreter() or "").parent), os.environ["PATH"]])
    ran = subprocess.run(
        COMMANDS[engine], shell=True, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PATH": paths}
    )
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_a_student_drafts_for_its_teacher(bundled):
    """What is said with a draft is what the teacher says alone, token by token."""
    teacher, student = (AutoModelForCausalLM.from_pretrained(path) for path in (BUNDLED, bundled / "plain" / "model"))
    ids = torch.tensor([[7, 99, 256, 1000]])
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    alone = teacher.generate(ids, **options)
    assert torch.equal(teacher.generate(ids, assistant_model=student, **options), alone)
