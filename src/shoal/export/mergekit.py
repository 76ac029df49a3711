"""The format ``mergekit``: the YAML with which mergekit makes the same student, where whole layers are gone or repeated.

Schema: ``merge_method: passthrough`` with slices of ``layer_range: [start, stop]``, whose upper end is excluded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from shoal.export.exporter import TRAINED, UNPLANNED, Exported, Exporter, Options, StudentFolder, cut_alone


def refuses(student: StudentFolder, options: Options) -> str | None:
    if student.plan is None:
        return UNPLANNED
    if student.is_trained:
        return TRAINED + cut_alone(student)
    if not student.plan.is_of_whole_layers:
        return f"it has values of its own or lacks parts of layers, which a slice of layers cannot say{cut_alone(student)}"
    return None


def _row(student: StudentFolder) -> list[int]:
    """The source's layers that run, in order; those that are repeated stand there again."""
    assert student.plan is not None
    return [slot.like for slot in student.plan.structure]


def ranges(order: Sequence[int]) -> list[list[int]]:
    """Half-open runs of consecutive layers, in order; a layer that is repeated starts a new one."""
    found: list[list[int]] = []
    for layer in order:
        if found and found[-1][1] == layer:
            found[-1][1] = layer + 1
        else:
            found.append([layer, layer + 1])
    return found


def write(student: StudentFolder, out: Path | None, options: Options) -> Exported:
    from shoal.words.records import write_atomically

    assert student.plan is not None
    sources = [{"sources": [{"model": student.plan.source, "layer_range": one}]} for one in ranges(_row(student))]
    content = {"slices": sources, "merge_method": "passthrough", "dtype": str(student.config.get("dtype") or "bfloat16")}
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
    if out is not None:
        if out.exists() and not options.overwrite:
            raise ValueError(f"{out} exists; give another name, or --overwrite")
        write_atomically(out, text.encode())
    note = "mergekit-yaml FILE.yml OUT makes the student; lists per layer in its config are not cut by mergekit"
    return Exported(out, text, (note,))


def verify(student: StudentFolder, done: Exported) -> dict[str, Any]:
    """Raises ValueError where the slices, read back, are not the kept layers."""
    assert student.plan is not None
    slices = [one["sources"][0]["layer_range"] for one in yaml.safe_load(done.text)["slices"]]
    layers = [layer for start, stop in slices for layer in range(start, stop)]
    if layers != _row(student):
        raise ValueError(f"the slices say layers {layers}, the plan has {_row(student)}")
    return {"slices": len(slices), "layers": len(layers)}


MERGEKIT = Exporter(
    name="mergekit",
    about="the YAML that makes the student of its teacher with mergekit; whole layers only",
    refuses=refuses,
    write=write,
    verify=verify,
    needs_target=False,
)
