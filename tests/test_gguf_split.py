"""A GGUF model in several files is cut as one; files that do not belong together are refused by name."""

import os
import shutil

import pytest
from gguf_files import keys_of, tensors_of, write_file

from shoal.export.gguf.cut_file import cut_gguf


@pytest.fixture
def split(tmp_path):
    (tmp_path / "split").mkdir()
    write_file(tmp_path / "split" / "m.gguf", split=8)
    return [tmp_path / "split" / f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]


@pytest.mark.parametrize("given", [0, 1, 2])
def test_a_split_model_is_cut_as_one(split, given, tmp_path):
    whole = write_file(tmp_path / "m.gguf")
    joined = cut_gguf(split[given], (0, 3, 5), tmp_path / "a.gguf")
    single = cut_gguf(whole, (0, 3, 5), tmp_path / "b.gguf")
    assert tensors_of(joined.path) == tensors_of(single.path) and keys_of(joined.path) == keys_of(single.path)


def missing(parts, tmp_path):
    parts[1].unlink()


def swapped(parts, tmp_path):
    os.replace(parts[1], tmp_path / "one")
    os.replace(parts[2], parts[1])
    os.replace(tmp_path / "one", parts[2])


def circle(parts, tmp_path):
    parts[2].unlink()
    parts[2].symlink_to(parts[0])


def link_to_itself(parts, tmp_path):
    parts[1].unlink()
    parts[1].symlink_to(parts[1])


def another_model(parts, tmp_path):
    (tmp_path / "x").mkdir()
    write_file(tmp_path / "x" / "m.gguf", split=4)
    shutil.copy(tmp_path / "x" / "m-00002-of-00005.gguf", parts[1])


def renamed(parts, tmp_path):
    for i, part in enumerate(parts):
        os.replace(part, part.with_name(f"part{i}.gguf"))


WRONG_PARTS = {
    missing: "m-00002-of-00003.gguf is not there; all 3 parts",
    swapped: r"says it is part 2 \(from 0\) of 3, its name says part 1",
    circle: r"says it is part 0 \(from 0\) of 3, its name says part 2",
    link_to_itself: "m-00002-of-00003.gguf (is not there|cannot be read)",
    another_model: "of 5, its name says part 1 of 3",
    renamed: "must end in -00001-of-00003.gguf",
}


@pytest.mark.parametrize("fault", WRONG_PARTS, ids=lambda one: one.__name__)
def test_parts_that_do_not_fit_are_refused(fault, split, tmp_path):
    fault(split, tmp_path)
    given = split[0] if split[0].exists() else split[0].with_name("part0.gguf")
    with pytest.raises(ValueError, match=WRONG_PARTS[fault]):
        cut_gguf(given, (0, 1), tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
