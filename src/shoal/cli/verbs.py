"""The verbs. Each reads its options, calls one function of the library, and prints what came out.

torch and transformers are imported inside the verbs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from shoal import __version__
from shoal.cli.compare import compare
from shoal.cli.curve import sweep
from shoal.cli.cut import cut
from shoal.cli.evaluate import evaluate, stability
from shoal.cli.export import export
from shoal.cli.heal import heal as heal_verb
from shoal.cli.options import (
    ByOption,
    DeviceOption,
    DropOption,
    DtypeOption,
    EffortOption,
    EvaluationsOption,
    FieldOption,
    FitTokensOption,
    GuardOption,
    HealOption,
    HealTokensOption,
    JsonOption,
    LearningRateOption,
    LengthOption,
    MetricOption,
    ModelOption,
    NoSpeedOption,
    ObserveOption,
    OutOption,
    OverwriteOption,
    ParametersOption,
    PolishOption,
    ProtectOption,
    RecipeOption,
    RemoteOption,
    RepairOption,
    ReplaceOption,
    ResidentOption,
    RoundsOption,
    SamplesOption,
    SeedOption,
    SelectOption,
    TextOption,
    TimeOption,
    TrainTokensOption,
    recipe_of,
    refuse_unopened,
    with_options,
)
from shoal.cli.report import report
from shoal.cli.show import (
    HEAT_MAP,
    is_run_folder,
    say_beside,
    say_files,
    say_spread,
    say_text,
    settle_resident,
    settle_time,
    show_outcome,
)
from shoal.cli.verify import verify
from shoal.cli.write import write
from shoal.engine.workers import join

if TYPE_CHECKING:
    from shoal.cli.console import Screen
    from shoal.recipes.recipe import Recipe

app = typer.Typer(
    name="shoal",
    help="Make deep language models shallower: measure layers, remove the idle ones, repair the cut, measure the loss.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def version(wanted: bool) -> None:
    """Print the version and stop, when asked to."""
    if wanted:
        print(__version__)
        raise typer.Exit


SHARED = ("compress", "eval", "heal", "plan", "run", "scan")
"""Verbs whose work several processes can share."""


@app.callback()
def shoal(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Make deep language models shallower."""
    n_processes = join().size
    if n_processes > 1 and context.invoked_subcommand not in SHARED:
        raise ValueError(
            f"{context.invoked_subcommand} runs in one process, not in {n_processes}; {', '.join(SHARED)} share work"
        )


@app.command()
def compress(
    model: ModelOption,
    out: OutOption,
    recipe: RecipeOption = "default",
    effort: EffortOption = None,
    drop: DropOption = None,
    params: ParametersOption = None,
    text: TextOption = None,
    field: FieldOption = None,
    samples: SamplesOption = None,
    length: LengthOption = None,
    select: SelectOption = None,
    metric: MetricOption = None,
    evaluations: EvaluationsOption = None,
    by: ByOption = None,
    guard: GuardOption = None,
    rounds: RoundsOption = None,
    protect: ProtectOption = None,
    replace: ReplaceOption = None,
    repair: RepairOption = None,
    fit_tokens: FitTokensOption = None,
    time: TimeOption = None,
    polish: PolishOption = None,
    train_tokens: TrainTokensOption = None,
    heal: HealOption = None,
    heal_tokens: HealTokensOption = None,
    lr: LearningRateOption = None,
    no_speed: NoSpeedOption = False,
    seed: SeedOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    resident: ResidentOption = "auto",
    trust_remote_code: RemoteOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
) -> None:
    """Remove layers, repair the cut, measure what was lost, save a checkpoint for plain transformers."""
    chosen = with_options(
        recipe_of(recipe, effort), model=model, drop=drop, params=params, text=text, field=field, samples=samples,
        length=length, select=select, metric=metric, evaluations=evaluations, by=by, guard=guard,
        rounds=rounds, protect=protect, replace=replace, repair=repair,
        fit_tokens=fit_tokens, polish=polish, train_tokens=train_tokens, heal=heal, heal_tokens=heal_tokens, lr=lr, seed=seed,
        speed=False if no_speed else None,
    )  # fmt: skip
    _compress(chosen, out, device, dtype, resident, trust_remote_code, overwrite, json, time=time)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="YAML file or the name of a recipe.")],
    out: OutOption,
    model: Annotated[Optional[str], typer.Option("--model", help="Hub id or folder, when the recipe names none.")] = None,  # noqa: UP045
    drop: DropOption = None,
    text: TextOption = None,
    field: FieldOption = None,
    no_speed: NoSpeedOption = False,
    seed: SeedOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    resident: ResidentOption = "auto",
    trust_remote_code: RemoteOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
) -> None:
    """Run a recipe from end to end."""
    speed = False if no_speed else None
    chosen = with_options(recipe, model=model, drop=drop, text=text, field=field, speed=speed, seed=seed)
    _compress(chosen, out, device, dtype, resident, trust_remote_code, overwrite, json)


DEMO_TOKENS = 40_000  # of the repair, so that the demo takes one to two minutes on two cores


@app.command()
def demo(out: OutOption = Path("demo-run"), overwrite: OverwriteOption = False, json: JsonOption = False) -> None:
    """Compress the bundled model by 25 % on the bundled text, offline."""
    from shoal.run.job import bundled_model

    chosen = with_options("default", model=str(bundled_model()), fit_tokens=DEMO_TOKENS)
    _compress(chosen, out, "cpu", None, "all", False, overwrite, json)


@app.command()
def scan(
    model: ModelOption,
    out: OutOption,
    text: TextOption = None,
    field: FieldOption = None,
    samples: SamplesOption = None,
    length: LengthOption = None,
    by: ByOption = None,
    observe: ObserveOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    resident: ResidentOption = "auto",
    trust_remote_code: RemoteOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
) -> None:
    """Measure every span of layers in one pass: scan.json, scan.safetensors, heat map."""
    from shoal.run.compress import open_folder
    from shoal.run.job import SHARE_FOR_WEIGHTS, open_inputs
    from shoal.run.refusals import refuse_place
    from shoal.run.stage import State, run_stage
    from shoal.run.stages.scan import SCAN
    from shoal.show.plan_tables import best_spans, telling_lengths

    screen = _screen(json)
    chosen = with_options(
        "default", model=model, text=text, field=field, samples=samples, length=length, by=by, observers=observe, seed=seed
    )
    refuse_place(out, chosen.model)
    folder = open_folder(out, command=_command(), overwrite=overwrite)
    resident = settle_resident(
        screen, chosen.model, resident, device=device, trust_remote_code=trust_remote_code, share=SHARE_FOR_WEIGHTS
    )
    inputs = open_inputs(chosen, device=device, dtype=dtype, resident=resident, trust_remote_code=trust_remote_code)
    say_text(screen, chosen)
    say_beside(screen, inputs.opened.beside)
    with screen.progress():
        found = run_stage(SCAN, State(inputs), folder, screen.step).scan
    assert found is not None, "the recipe default reads a scan"
    screen.show(best_spans(found, lengths=telling_lengths(max(1, found.n_layers - 1))))
    say_files(screen, out, ("scan", "scan.json"), HEAT_MAP)
    screen.result({"scan": str(out / "scan.json"), "provenance": found.provenance.model_dump(mode="json")})


@app.command()
def plan(
    target: Annotated[str, typer.Argument(metavar="DIR|MODEL", help="A run folder with a scan, or a model to scan first.")],
    out: Annotated[Optional[Path], typer.Option("--out", help="Run folder; the given DIR unless told.")] = None,  # noqa: UP045
    recipe: RecipeOption = "default",
    effort: EffortOption = None,
    drop: DropOption = None,
    params: ParametersOption = None,
    text: TextOption = None,
    field: FieldOption = None,
    samples: SamplesOption = None,
    length: LengthOption = None,
    select: SelectOption = None,
    metric: MetricOption = None,
    evaluations: EvaluationsOption = None,
    by: ByOption = None,
    guard: GuardOption = None,
    rounds: RoundsOption = None,
    protect: ProtectOption = None,
    replace: ReplaceOption = None,
    repair: RepairOption = None,
    fit_tokens: FitTokensOption = None,
    polish: PolishOption = None,
    train_tokens: TrainTokensOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    resident: ResidentOption = "auto",
    trust_remote_code: RemoteOption = False,
    overwrite: OverwriteOption = False,
    memory: Annotated[bool, typer.Option("--memory", help="Say what every stage of compress will take; run nothing.")] = False,
    json: JsonOption = False,
) -> None:
    """Choose what to remove: plan.json, readable and editable by hand."""
    from shoal.measure.scan import Scan
    from shoal.run.asking import needs_model
    from shoal.run.compress import open_folder
    from shoal.run.job import SHARE_FOR_WEIGHTS, open_inputs
    from shoal.run.memory_plan.needs import needs_of, needs_table
    from shoal.run.refusals import check_budget, refuse_place
    from shoal.run.stage import State, run_all
    from shoal.run.stages.choose import CHOOSE, plan_unopened
    from shoal.run.stages.scan import SCAN
    from shoal.show.plan_tables import candidates

    screen = _screen(json)
    model, asked = target, None
    if is_run_folder(target):
        found = Scan.load(Path(target))
        model, out, asked = found.provenance.model, out or Path(target), found.asked
    chosen = with_options(
        recipe_of(recipe, effort), asked=asked, model=model, drop=drop, params=params, text=text, field=field, samples=samples,
        length=length, select=select, metric=metric, evaluations=evaluations, by=by, guard=guard,
        rounds=rounds, protect=protect, replace=replace, repair=repair,
        fit_tokens=fit_tokens, polish=polish, train_tokens=train_tokens, seed=seed,
    )  # fmt: skip
    if memory:
        needs = needs_of(chosen, resident=resident, device=device, dtype=dtype, trust_remote_code=trust_remote_code, out=out)
        screen.show(needs_table(needs))
        screen.result(needs.model_dump(mode="json"))
        return
    if out is None:
        raise ValueError(f"{target} is not a run folder with a scan; for a model give --out DIR as well")
    refuse_place(out, chosen.model)
    folder = open_folder(out, command=_command(), overwrite=overwrite)
    if not needs_model(chosen):
        asked_for = {"text": text, "field": field, "samples": samples, "length": length, "seed": seed, "dtype": dtype}
        refuse_unopened(asked_for, device=device, resident=resident)
        made = plan_unopened(chosen, folder, trust_remote_code=trust_remote_code)
    else:
        resident = settle_resident(
            screen, chosen.model, resident, device=device, trust_remote_code=trust_remote_code, share=SHARE_FOR_WEIGHTS
        )
        inputs = open_inputs(chosen, device=device, dtype=dtype, resident=resident, trust_remote_code=trust_remote_code)
        say_text(screen, chosen)
        say_beside(screen, inputs.opened.beside)
        with screen.progress():
            check_budget(inputs)
            made = run_all((SCAN, CHOOSE), State(inputs), folder, screen.step).planned
    if len(made.candidates) > 1:
        screen.show(candidates(made.candidates, n_layers=made.n_layers))
    say_spread(screen, made)
    screen.say(f"Plan: {made} ({made.before.parameters:,} -> {made.after.parameters:,} parameters)")
    say_files(screen, out, ("plan", "plan.json"), ("search", "search.json"))
    screen.result(made.model_dump(mode="json"))


@app.command()
def apply(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN", help="plan.json, or fitted.json with its repair; values lie beside it.")
    ],
    out: Annotated[Path, typer.Option("--out", help="New folder for the checkpoint.")],
    model: Annotated[Optional[str], typer.Option("--model", help="Where the source model is now, when it has moved.")] = None,  # noqa: UP045
    device: DeviceOption = "cpu",
    trust_remote_code: RemoteOption = False,
    json: JsonOption = False,
) -> None:
    """Apply a plan to its source. Plain removal goes file to file: any size, quantised too, the model is not opened."""
    from shoal.run.apply import apply_plan
    from shoal.run.run_files import CHOSEN
    from shoal.run.stages.fit import FITTED

    screen = _screen(json)
    made = apply_plan(plan, out, model=model, device=device, trust_remote_code=trust_remote_code)
    say_beside(screen, made.beside)
    screen.say(f"{made.plan}\ncheckpoint: {out}")
    if plan.name == CHOSEN and (plan.parent / FITTED).exists():
        screen.say(f"this is the cut as it was chosen; {plan.parent / FITTED} is the same plan with its repair")
    screen.result({"model": str(out), "layers": made.plan.after.layers, "verification": made.verification})


app.command("eval")(evaluate)
app.command()(compare)
app.command()(stability)
app.command()(cut)
app.command()(export)
app.command()(verify)
app.command()(write)
app.command()(sweep)
app.command()(report)
app.command("heal")(heal_verb)


# -- what the verbs share ------------------------------------------------------------------------------------------------


def _compress(
    chosen: Recipe,
    out: Path,
    device: str,
    dtype: str | None,
    resident: str,
    trust_remote_code: bool,
    overwrite: bool,
    json: bool,
    *,
    time: str | None = None,
) -> None:
    from shoal.run.compress import open_folder, run_stages
    from shoal.run.job import SHARE_BESIDE_STUDENT, open_inputs
    from shoal.run.refusals import refuse_place, refuse_side_files
    from shoal.run.time_budget import parse_time

    screen = _screen(json)
    seconds = None if time is None else parse_time(time)
    refuse_place(out, chosen.model)
    say_text(screen, chosen)
    resident = settle_resident(
        screen, chosen.model, resident, device=device, trust_remote_code=trust_remote_code, share=SHARE_BESIDE_STUDENT
    )
    refuse_side_files(chosen)
    folder = open_folder(out, command=_command(), overwrite=overwrite)
    inputs = open_inputs(
        chosen, device=device, dtype=dtype, resident=resident, trust_remote_code=trust_remote_code, share=SHARE_BESIDE_STUDENT
    )
    inputs = settle_time(screen, inputs, folder, seconds=seconds)
    with screen.progress():
        outcome = run_stages(inputs, folder, command=_command(), progress=screen.step)
    show_outcome(screen, outcome)


def _screen(as_json: bool) -> Screen:
    from shoal.cli.console import Screen

    return Screen(as_json=as_json)


def _command() -> str:
    """The command line as it was typed."""
    return shlex.join(["shoal", *sys.argv[1:]])
