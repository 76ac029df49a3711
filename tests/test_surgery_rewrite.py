"""File to file equals in memory, byte for byte; a folder appears whole or not at all; the source is never touched."""

import errno
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from families import FAMILIES, tiny_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from shoal.checkpoint import copy_shards as shard_copy
from shoal.checkpoint import new_folder as folder_module
from shoal.checkpoint.blended import write_blend
from shoal.checkpoint.in_memory import cut
from shoal.checkpoint.new_folder import TEMPLATES, new_folder
from shoal.checkpoint.rewrite import rewrite
from shoal.checkpoint.save import save
from shoal.edits.drop import Drop
from shoal.edits.plan import Plan
from shoal.engine.layer_names import decoder_prefix
from shoal.engine.open import open_model
from shoal.engine.shards import read_shards
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.words.structure import Size
from shoal.words.types import Unit

SIZE = Size(layers=6, parameters=0)
Usage = namedtuple("Usage", "total used free")


def removal(*layers, n_layers=6):
    return Plan(
        source="m", source_hash="", teacher="m", n_layers=n_layers, edits=(Drop(indices=layers),), before=SIZE, after=SIZE
    )  # fmt: skip


def tensors_of(folder):
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


def assert_same_tensors(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    made = tmp_path_factory.mktemp("source") / "llama"
    save(tiny_model("llama"), None, made)
    (made / "chat_template.jinja").write_text("{{ messages }}")
    (made / "LICENSE").write_text("free")
    (made / "README.md").write_text("card of the source")
    (made / "pytorch_model.bin").write_bytes(b"pickle")
    return made


@pytest.fixture
def source(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "source")


@pytest.mark.in_turn(2)
@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize("layers", [(1, 2), (0, 3, 5)], ids=str)
def test_file_to_file_equals_in_memory(name, layers, tmp_path):
    model = tiny_model(name)
    save(model, None, tmp_path / "source")
    before = contents(tmp_path / "source")
    rewrite(tmp_path / "source", removal(*layers), tmp_path / "files")
    save(cut(DecoderView(model), Student(frozenset(Unit("layer", i) for i in layers))), None, tmp_path / "memory")
    assert_same_tensors(tensors_of(tmp_path / "files"), tensors_of(tmp_path / "memory"))
    for file in ("config.json", "generation_config.json"):
        ours, theirs = ((tmp_path / kind / file) for kind in ("files", "memory"))
        assert ours.exists() == theirs.exists() and (
            not ours.exists() or json.loads(ours.read_text()) == json.loads(theirs.read_text())
        )
    assert contents(tmp_path / "source") == before
    assert open_model(tmp_path / "files").model.config.num_hidden_layers == 6 - len(layers)


def shard(folder):
    """One shard per layer and one for the rest, as large checkpoints are."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    groups = [{n: t for n, t in tensors.items() if f"layers.{i}." in n} for i in range(6)]
    groups.append({n: t for n, t in tensors.items() if "layers." not in n})
    places = {}
    for i, group in enumerate(groups):
        file = f"model-{i + 1:05d}-of-00007.safetensors"
        save_file(group, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(group, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


def test_shards_with_nothing_left_vanish(saved, source, tmp_path):
    shard(source)
    rewrite(source, removal(1, 2), tmp_path / "sharded")
    rewrite(saved, removal(1, 2), tmp_path / "single")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) == 5
    assert_same_tensors(tensors_of(tmp_path / "sharded"), tensors_of(tmp_path / "single"))
    read_shards(tmp_path / "sharded")  # Index and shards agree.
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(
        t.numel() * t.element_size() for t in tensors_of(tmp_path / "sharded").values()
    )
    open_model(tmp_path / "sharded")


def test_a_blend_of_one_shard_under_another_name_has_its_index(saved, source, tmp_path):
    """Some tools write ``model-00001-of-00001.safetensors``, which nobody finds without an index."""
    names, file = tensors_of(source), "model-00001-of-00001.safetensors"
    (source / "model.safetensors").rename(source / file)
    content = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, file)}
    (source / "model.safetensors.index.json").write_text(json.dumps(content))
    (tmp_path / "blend").mkdir()
    write_blend(source, saved, 0.5, tmp_path / "blend")
    open_model(tmp_path / "blend")
    assert_same_tensors(tensors_of(tmp_path / "blend"), names)


def test_side_files_are_copied_and_are_nobodys_links(saved, tmp_path):
    source = shutil.copytree(saved, tmp_path / "models--org--name" / "snapshots" / "abc")
    blob = tmp_path / "models--org--name" / "blobs" / "123"
    blob.parent.mkdir()
    blob.write_text('{"model": {}}')
    (source / "tokenizer.json").symlink_to(blob)  # The cache of the hub has such links.
    out = rewrite(source, removal(1), tmp_path / "out")
    names = {path.name for path in out.iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "generation_config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "LICENSE",
    }
    assert not any(path.is_symlink() or path.stat().st_nlink > 1 for path in out.iterdir())
    before = contents(source)
    for path in out.iterdir():
        path.write_bytes(b"edited")
    assert contents(source) == before


def test_in_memory_saving_copies_the_same_side_files(source, tmp_path):
    model = open_model(source).model
    (source / "tokenizer.json").write_text('{"model": {}}')
    (source / TEMPLATES).mkdir()
    (source / TEMPLATES / "tool_use.jinja").write_text("{{ tools }}")
    out = save(cut(DecoderView(model), Student(frozenset({Unit("layer", 1)}))), None, tmp_path / "memory", source=source)
    assert contents(out).keys() == contents(rewrite(source, removal(1), tmp_path / "files")).keys()
    assert (out / TEMPLATES / "tool_use.jinja").read_text() == "{{ tools }}"


def test_named_chat_templates_come_along_and_are_nobodys_links(source, tmp_path):
    (source / TEMPLATES).mkdir()
    (source / TEMPLATES / "rag.jinja").write_text("{{ documents }}")
    (source / TEMPLATES / ".hidden.jinja").write_text("not ours")
    (source / "other").mkdir()
    (source / "other" / "tool_use.jinja").write_text("not ours")
    out = rewrite(source, removal(1), tmp_path / "out")
    assert [str(path.relative_to(out)) for path in out.rglob("*") if path.parent != out] == [f"{TEMPLATES}/rag.jinja"]
    shutil.move(source / TEMPLATES, tmp_path / "elsewhere")
    (source / TEMPLATES).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"{TEMPLATES}/rag.jinja is a link to .*elsewhere.*outside the model's folder"):
        rewrite(source, removal(1), tmp_path / "refused")


def test_quantised_tensors_keep_their_bytes_and_their_names_follow(source, tmp_path):
    tensors = load_file(source / "model.safetensors")
    for i in range(6):
        name = f"model.layers.{i}.mlp.up_proj.weight"
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[name + "_scale"] = torch.full((1,), float(i))
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "modules_to_not_convert": ["lm_head", "model.layers.1.mlp", "model.layers.4.mlp", "model.layers.5"],
    }
    (source / "config.json").write_text(json.dumps(config))
    out = rewrite(source, removal(1, 2), tmp_path / "out")
    after = tensors_of(out)
    for new, old in enumerate((0, 3, 4, 5)):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert torch.equal(after[name.format(new)].view(torch.uint8), tensors[name.format(old)].view(torch.uint8))
        assert after[name.format(new) + "_scale"] == old
    kept = json.loads((out / "config.json").read_text())["quantization_config"]
    assert kept["modules_to_not_convert"] == ["lm_head", "model.layers.2.mlp", "model.layers.3"]


def test_prediction_layers_beyond_the_decoder_are_left_out(tmp_path):
    model = tiny_model("deepseek_v3")
    save(model, None, tmp_path / "source")
    tensors = load_file(tmp_path / "source" / "model.safetensors")
    tensors["model.layers.6.enorm.weight"] = torch.ones(32)
    save_file(tensors, tmp_path / "source" / "model.safetensors", metadata={"format": "pt"})
    out = rewrite(tmp_path / "source", removal(1), tmp_path / "out")
    assert not any(name.startswith(("model.layers.5", "model.layers.6")) for name in tensors_of(out))
    assert json.loads((out / "config.json").read_text()).get("num_nextn_predict_layers", 0) == 0


@pytest.mark.parametrize(
    ("names", "path", "expected"),
    [
        (["h.0.w", "h.1.w", "wte.weight"], "transformer.h", "h."),
        (["model.layers.0.mlp.experts.0.w", "model.layers.1.mlp.experts.1.w"], "model.layers", "model.layers."),
        (["model.layers.0.w", "model.layers.1.w", "model.layers.2.w"], "model.layers", "model.layers."),
        (["vision.layers.0.w", "vision.layers.1.w", "text.layers.0.w", "text.layers.1.w"], "text.layers", "text.layers."),
        (["0.w", "1.w"], "layers", ""),
        (
            ["language_model.model.layers.0.w", "language_model.model.layers.1.w", "tower.layers.0.w", "tower.layers.1.w"],
            "model.language_model.layers",
            "language_model.model.layers.",
        ),
    ],
)
def test_the_layer_prefix_is_found_from_the_names(names, path, expected):
    assert decoder_prefix(names, 2, path) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [(["h.0.w", "h.2.w"], "no tensor names numbered 0..1"), (["a.0.w", "a.1.w", "b.0.w", "b.1.w"], "several lists")],
)
def test_an_unclear_layer_prefix_is_refused(names, message):
    with pytest.raises(ValueError, match=message):
        decoder_prefix(names, 2, "model.layers")


def test_a_plan_for_another_depth_is_refused(source, tmp_path):
    with pytest.raises(ValueError, match="made for 8 layers.*has 6"):
        rewrite(source, removal(1, n_layers=8), tmp_path / "out")


def test_a_truncated_source_is_refused(source, tmp_path):
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="truncated"):
        rewrite(source, removal(1), tmp_path / "out")
    assert leftovers(tmp_path) == {"source"}


def leftovers(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("what", ["folder", "file"])
def test_nothing_is_overwritten(source, tmp_path, what):
    out = tmp_path / "out"
    if what == "folder":
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    else:
        out.write_text("mine")
    with pytest.raises(ValueError, match="not an empty folder"):
        rewrite(source, removal(1), out)
    with pytest.raises(ValueError, match="not an empty folder"):
        save(tiny_model("llama", n_layers=1), None, out)
    assert (out / "mine.txt" if what == "folder" else out).read_text() == "mine"


def test_an_empty_folder_is_taken(source, tmp_path):
    (tmp_path / "deep" / "out").mkdir(parents=True)
    open_model(rewrite(source, removal(1), tmp_path / "deep" / "out"))
    assert oct((tmp_path / "deep" / "out").stat().st_mode & 0o777) == "0o755"


def test_a_full_disk_is_seen_before_writing(source, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module.shutil, "disk_usage", lambda path: Usage(10, 3, 7))
    writers = [lambda out: rewrite(source, removal(1), out), lambda out: save(tiny_model("llama", n_layers=1), None, out)]
    for write in writers:
        with pytest.raises(ValueError, match=r"no space left in .*: \d+ bytes are needed, 7 are free"):
            write(tmp_path / "out")
    assert leftovers(tmp_path) == {"source"}


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Quota exceeded")], ids=str
)
def test_a_disk_that_fills_up_leaves_nothing_behind(source, tmp_path, monkeypatch, error):
    def full(descriptor):
        raise error

    monkeypatch.setattr(shard_copy.os, "fsync", full)
    with pytest.raises(ValueError, match="no space left") as caught:
        rewrite(source, removal(1), tmp_path / "out")
    assert "\n" not in str(caught.value) and leftovers(tmp_path) == {"source"}


def test_a_disk_that_fills_up_while_saving_leaves_nothing_behind(tmp_path):
    class Model:
        def parameters(self):
            return []

        def save_pretrained(self, folder):
            (Path(folder) / "half").write_text("half")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(ValueError, match="no space left .*filled up"):
        save(Model(), None, tmp_path / "out")
    assert leftovers(tmp_path) == set()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError(errno.EIO, "broken")])
def test_an_interrupted_write_leaves_nothing_behind(tmp_path, error):
    with pytest.raises((KeyboardInterrupt, RuntimeError, OSError)), new_folder(tmp_path / "out") as temporary:
        (temporary / "half").write_text("half")
        assert temporary.parent == tmp_path, "a sibling, so that the rename is atomic"
        raise error
    assert leftovers(tmp_path) == set()


def test_copying_needs_no_more_memory_than_a_chunk(source, tmp_path, monkeypatch):
    sizes = []
    own = Path.open

    def watched(self, *args, **kwargs):
        file = own(self, *args, **kwargs)
        if self.suffix == ".safetensors" and args == ("rb",):
            read = file.read

            class Reader:
                def read(self, n=-1):
                    sizes.append(n)
                    return read(n)

                def __getattr__(self, name):
                    return getattr(file, name)

                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    file.close()

            return Reader()
        return file

    monkeypatch.setattr(shard_copy, "CHUNK", 1000)
    rewrite(source, removal(2), tmp_path / "plain")
    monkeypatch.setattr(Path, "open", watched)
    rewrite(source, removal(2), tmp_path / "out")
    header = max(sizes)
    assert all(0 < n <= 1000 or n == header for n in sizes) and len(sizes) > 10
    monkeypatch.undo()
    assert_same_tensors(tensors_of(tmp_path / "out"), tensors_of(tmp_path / "plain"))
    assert header < os.path.getsize(source / "model.safetensors") / 4
