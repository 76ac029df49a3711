"""The verb ``criteria``: do scores choose the same layers, and does the text decide?"""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from shoal.cli.options import (
    DeviceOption,
    DropOption,
    DtypeOption,
    FieldOption,
    JsonOption,
    LengthOption,
    ModelOption,
    ProtectOption,
    RemoteOption,
    ResidentOption,
    SamplesOption,
    SeedOption,
    with_options,
)
from shoal.cli.show import settle_resident


def criteria(
    model: ModelOption,
    drop: DropOption = None,
    text: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--text", help="A corpus, as for shoal scan; again: one more.  [default: the bundled sample]"),
    ] = None,
    field: FieldOption = None,
    samples: SamplesOption = None,
    length: LengthOption = None,
    protect: ProtectOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    resident: ResidentOption = "auto",
    trust_remote_code: RemoteOption = False,
    json: JsonOption = False,
) -> None:
    """Compare criteria over corpora: cosine, angle, block influence, perplexity of the cut model; overlap and cost."""
    from shoal.cli.console import Screen
    from shoal.evaluate.criteria import choices_table, overlap_table
    from shoal.run.criteria import compare_criteria
    from shoal.run.job import SHARE_FOR_WEIGHTS

    screen = Screen(as_json=json)
    chosen = with_options(
        "default",
        model=model,
        drop=drop,
        field=field,
        samples=samples,
        length=length,
        protect=protect,
        seed=seed,
        replace="none",
    )
    if not text:
        screen.say("Text: the bundled sample of public-domain books (give your own with --text)")
    resident = settle_resident(
        screen, model, resident, device=device, trust_remote_code=trust_remote_code, share=SHARE_FOR_WEIGHTS
    )
    with screen.progress():
        found = compare_criteria(
            chosen,
            text or (),
            device=device,
            dtype=dtype,
            resident=resident,
            trust_remote_code=trust_remote_code,
            progress=screen.step,
        )
    screen.show(choices_table(found))
    for shape in ("span", "lowest"):
        screen.show(overlap_table(found, shape))
    screen.result(found.model_dump(mode="json"))
