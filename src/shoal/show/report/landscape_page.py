"""The page of a look at weight space; made of the same parts as a run's page."""

from shoal.evaluate.landscape.line import Landscape
from shoal.show import landscape_views as views
from shoal.show.headline import source_name
from shoal.show.html import tag
from shoal.show.report.page import page_of
from shoal.show.report.run_data import Part, Section

SOURCE = "landscape.json"


def landscape_page(found: Landscape) -> str:
    """The whole file."""
    name = source_name(found.model)
    other = "" if found.other is None else f" and {source_name(found.other)}"
    return page_of(f"{name}{other}", "layers as directions in weight space", landscape_sections(found))


def landscape_sections(found: Landscape) -> tuple[Section, ...]:
    """The sections that something was measured for."""
    makers = (_removal, _barriers, _blend, _read_outs)
    return tuple(section for make in makers if (section := make(found)) is not None)


def _removal(found: Landscape) -> Section | None:
    if not found.removal:
        return None
    said = tag(
        "p",
        "The maps by which a layer writes are scaled by 1 - t; at t = 1 the layer is gone, exactly. Cost: what that adds to "
        "the loss. Bump: how far the path lies above the straight line between its ends. "
        f"Measured on {found.provenance.text_said}.",
    )
    parts: tuple[Part, ...] = (said, *views.removal_charts(found.removal), views.removal_table(found))
    return Section("removal", "Every layer on its way out", SOURCE, parts)


def _barriers(found: Landscape) -> Section | None:
    if not found.barriers:
        return None
    said = tag(
        "p",
        "A part of the weights half way between the two models, the rest as in the first. A barrier is the loss there above a "
        "mean: of the two whole models, or of the ends of the line that is walked. Below 0, half way is better than that mean. "
        "At random: the layer moved as far as B's lies, in random directions, five of them with their standard deviation.",
    )
    return Section("barriers", "Between the two", SOURCE, (said, *views.barrier_charts(found), views.barrier_table(found)))


def _blend(found: Landscape) -> Section | None:
    if not found.blend:
        return None
    said = tag("p", f"All weights moved together: {views.blend_said(found.blend)}.")
    return Section("blend", "From the one to the other", SOURCE, (said, views.blend_chart(found.blend)))


def _read_outs(found: Landscape) -> Section | None:
    if not found.read_outs:
        return None
    one = found.read_outs[0]
    said = tag(
        "p",
        "An affine map to the last boundary, fitted in closed form, and behind it the model's own norm and head. "
        f"{views.warning(found)} Fitted on {one.n_tokens:,} tokens, measured on {one.n_held_out:,} others.",
    )
    return Section(
        "read-outs",
        "What can be read off linearly",
        SOURCE,
        (said, views.read_out_chart(found), views.read_out_table(found.read_outs)),
    )
