"""Tables and charts of a look at weight space: removal paths, barriers, the way between two models, read-outs."""

from collections.abc import Sequence

from shoal.evaluate.landscape.line import Barrier, Landscape, LinePoint, ReadOut, Removal
from shoal.show.chart import Chart, Point, Rule, Series
from shoal.show.table import Column, Table, numbers
from shoal.words.numbers import number, percent, short, with_error

N_CURVES = 5
"""Layers of least cost whose whole path is drawn, and with them the dearest one."""


def removal_table(found: Landscape) -> Table:
    """One row for every layer, front to back."""
    steps = [point.t for point in found.removal[0].points]
    columns = (
        Column("layer"), *numbers("cost", "slope at the start", "bump"), *numbers(*(f"loss at {t:g}" for t in steps))
    )  # fmt: skip
    rows = tuple((str(one.layer), one.cost, one.slope, one.bump, *(p.loss for p in one.points)) for one in found.removal)
    return Table("Every layer on its way out, nats per token", columns, rows, notes=found.left)


def removal_charts(removal: Sequence[Removal]) -> tuple[Chart, ...]:
    """What each layer costs, beside what its slope foretells; and the paths of some."""

    def series(name: str, style: int, values: Sequence[float]) -> Series:
        both = zip(removal, values, strict=True)
        points = (Point(one.layer, value, tip=f"layer {one.layer}, {name}: {number(value)}") for one, value in both)
        return Series(name, tuple(points), style=style)

    cost = series("cost of removal", 0, [one.cost for one in removal])
    slope = series("slope at the start", 1, [one.slope for one in removal])
    by_cost = sorted(removal, key=lambda one: one.cost)
    shown = list(dict.fromkeys([*(one.layer for one in by_cost[:N_CURVES]), by_cost[-1].layer]))
    paths = tuple(_path(one, shown.index(one.layer)) for one in removal if one.layer in shown)
    return (
        Chart("removal", "What a layer's removal adds to the loss", "layer", "nats per token", (cost, slope)),
        Chart("removal-paths", "On the way out", "t", "loss, nats per token", paths, whole_x=False),
    )


def _path(one: Removal, style: int) -> Series:
    points = (Point(p.t, p.loss, tip=f"layer {one.layer} at {p.t:g}: {number(p.loss)}") for p in one.points)
    return Series(f"layer {one.layer}", tuple(points), style=style)


def barrier_table(found: Landscape) -> Table:
    """Layers alone, then the first and the last k together, then everything."""
    columns = (
        Column("part half way"), Column("barrier (mean of both models)"),
        *numbers("barrier (ends of the line)", "loss half way", "loss with B's part"),
        Column("loss as far at random"),
    )  # fmt: skip
    rows = [
        (
            _said(one), with_error(one.of_models, one.stderr), one.of_ends, one.halfway, one.swapped,
            "" if one.at_random is None else with_error(one.at_random, one.random_spread),
        )
        for one in found.barriers
    ]  # fmt: skip
    breaks = [i for i in range(1, len(rows)) if found.barriers[i].part != found.barriers[i - 1].part]
    return Table("Barriers between the two, nats per token", columns, tuple(rows), breaks=tuple(breaks), is_long=True)


def _said(one: Barrier) -> str:
    return {"layer": f"layer {one.n}", "all": "everything"}.get(one.part, f"{one.part} {one.n} layers")


def barrier_charts(found: Landscape) -> tuple[Chart, ...]:
    """By layer with both baselines, and by how many layers are moved together."""
    alone = found.barrier("layer")
    whole = found.barrier("all")[0]
    everything = Rule("y", whole.of_models, "everything")
    by_layer = (
        _barriers("above the mean of both models", 0, alone, [one.of_models for one in alone], errors=True),
        _barriers("above the mean of the line's ends", 1, alone, [one.of_ends for one in alone]),
    )
    together = tuple(
        _barriers(f"{part} k", style, some, [one.of_models for one in some], errors=True)
        for style, part in enumerate(("first", "last"))
        if (some := found.barrier(part))
    )
    charts = [Chart("barriers", "Barrier of each layer", "layer", "nats per token", by_layer), *_control_charts(alone)]
    if together:
        title = "Barrier of k layers together"
        charts.append(Chart("barriers-together", title, "k", "nats per token", together, rules=(everything,)))
    return tuple(charts)


def _control_charts(alone: Sequence[Barrier]) -> tuple[Chart, ...]:
    """A with B's layer, and with a random one as far away."""
    drawn = [(one, one.at_random, one.random_spread or 0.0) for one in alone if one.at_random is not None]
    if not drawn:
        return ()
    swapped = tuple(Point(one.n, one.swapped, tip=f"{_said(one)} of B: {number(one.swapped)}") for one in alone)
    random = tuple(
        Point(one.n, loss, low=loss - spread, high=loss + spread, tip=f"{_said(one)} at random: {number(loss)}")
        for one, loss, spread in drawn
    )
    series = (Series("B's layer in A", swapped, style=0), Series("a random one as far away", random, style=1))
    return (Chart("barriers-control", "One layer exchanged", "layer", "loss, nats per token", series),)


def _barriers(name: str, style: int, some: Sequence[Barrier], values: Sequence[float], *, errors: bool = False) -> Series:
    points = []
    for one, value in zip(some, values, strict=True):
        low, high = (value - one.stderr, value + one.stderr) if errors else (None, None)
        points.append(Point(one.n, value, low=low, high=high, tip=f"{_said(one)}, {name}: {number(value)}"))
    return Series(name, tuple(points), style=style)


def blend_chart(blend: Sequence[LinePoint]) -> Chart:
    """The whole of A moved towards B."""
    points = tuple(Point(one.t, one.loss, tip=f"{one.t:g} of the way: {number(one.loss)}") for one in blend)
    return Chart("blend", "From the one to the other", "t", "loss, nats per token", (Series("loss", points),), whole_x=False)


def blend_said(blend: Sequence[LinePoint]) -> str:
    """Where on the way the loss is lowest, for people."""
    best = min(blend, key=lambda one: (one.loss, one.t))
    ends = f"{short(blend[0].loss)} at A, {short(blend[-1].loss)} at B"
    if best.t in (0.0, 1.0):
        return f"no point between the two is better than {'A' if best.t == 0 else 'B'} ({ends} nats per token)"
    return f"lowest {best.t:g} of the way: {short(best.loss)} nats per token ({ends})"


def read_out_table(read_outs: Sequence[ReadOut]) -> Table:
    """One row for every boundary."""
    columns = (Column("boundary"), *numbers("next token right, %", form=percent), *numbers("nats per token"))
    rows = tuple((str(one.boundary), one.accuracy, one.nll) for one in read_outs)
    return Table("What a linear read-out sees", columns, rows, is_long=True)


def read_out_chart(found: Landscape) -> Chart:
    """Accuracy over depth, with the boundary from which on half of it is there."""
    points = tuple(
        Point(one.boundary, 100 * one.accuracy, tip=f"boundary {one.boundary}: {percent(one.accuracy)} %")
        for one in found.read_outs
    )
    at = found.separable_from
    rules = () if at is None else (Rule("x", at, "half is there"),)
    title = "Next token by a linear read-out"
    return Chart("read-outs", title, "boundary", "right, %", (Series("accuracy", points),), rules=rules)


def warning(found: Landscape) -> str:
    """What the read-outs say of local losses, for people."""
    at = found.separable_from
    if at is None or at == 0:
        return (
            "A linear read-out sees as much at the embedding as behind the last layer: this text says nothing of local losses."
        )
    return (
        f"Before boundary {at} a linear read-out has less than half of what the layers add to the accuracy of the next token: "
        "a local loss on tokens there asks for what is not separable yet (arXiv 2010.08038); one on the teacher's states "
        "does not."
    )
