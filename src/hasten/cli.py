"""The `hasten` command. Bad input ends with one clear line and exit code 2; a run in which nothing passed with 1."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hasten.engine.cli import register as register_engine
from hasten.errors import HastenError, InvalidInput
from hasten.quantities import parse_limits, parse_share, parse_size
from hasten.report.listing import register as register_listing
from hasten.serve.cli import register as register_serve
from hasten.usage import Group, add_examples, waiting

app = typer.Typer(
    name="hasten",
    cls=Group,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # boxes make the help of a command with many options longer than a screen
    context_settings={"max_content_width": 120, "help_option_names": ["-h", "--help"]},
    epilog="Begin with `hasten init`. `hasten COMMAND --help` shows examples.",
)

TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="file.py[:function] or package.module:function")]
ArtifactArgument = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Folder made by run or apply.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Print only the result.")]

_DOCTOR_SECONDS = 60  # a small network's; a large one's compilers take longer


def _console(**options: Any) -> Any:
    from rich.console import Console  # here, since `serve` is to start quickly

    return Console(**options)


def main() -> None:
    """Entry point of the `hasten` command."""
    try:
        app()
    except HastenError as error:
        _console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(2) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        from hasten import __version__

        typer.echo(f"hasten {__version__}")
        raise typer.Exit


@app.callback()
def hasten_command(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """The fastest version of a trained PyTorch model that provably keeps its accuracy."""


@app.command("run")
def run_command(
    task: TaskArgument,
    max_drop: Annotated[str, typer.Option(help="Largest accepted drop: 1% or 0.01.")] = "1%",
    confidence: Annotated[float, typer.Option(help="Confidence of the certificate.")] = 0.95,
    minutes: Annotated[float | None, typer.Option(help="Deadline for the whole run.")] = None,
    targets: Annotated[str, typer.Option(help="Names with commas, or auto.")] = "auto",
    out: Annotated[Path, typer.Option(help="Run folder; new or empty.")] = Path("runs/last"),
    seed: Annotated[int, typer.Option(help="Of the holdout split and all else.")] = 0,
    objective: Annotated[str, typer.Option(help="latency, throughput, size or energy.")] = "latency",
    max_latency_ms: Annotated[float | None, typer.Option(help="Largest accepted latency at batch 1.")] = None,
    max_size: Annotated[str | None, typer.Option(help="Largest accepted size: 256KB, 4MB.")] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Of a judged target: luts=40000, hbm_bytes=16GB."),
    ] = None,
    training: Annotated[bool, typer.Option(help="Prune and train candidates too.")] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    ray: Annotated[str | None, typer.Option(help="Try on a Ray cluster: auto or an address.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Serve the report while it searches.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find the fastest version that keeps its accuracy; certify it."""
    from hasten.search.progress import Bar, Silent
    from hasten.search.run import run
    from hasten.search.space import usable_targets
    from hasten.task import Budget
    from hasten.taskfile import load_task

    budget = Budget(
        max_drop=parse_share(max_drop, "--max-drop"),
        confidence=confidence,
        minutes=minutes,
        objective=objective,
        max_latency_ms=max_latency_ms,
        max_size_bytes=None if max_size is None else parse_size(max_size, "--max-size"),
        training=training,
        limits=parse_limits(limit or []),
    )
    console = _console(stderr=True)
    usable_targets(targets, budget.limits)  # a name that is wrong is wrong before a task is loaded
    settings: dict[str, Any] = {"targets": targets, "out": out, "seed": seed, "resume": resume, "ray": ray}
    with contextlib.ExitStack() as stack:
        if watch:
            from hasten.report.live import LivePage

            url = stack.enter_context(LivePage(out)).url
            console.print(f"watch: {url}", markup=False, highlight=False, soft_wrap=True)
        listener = Silent() if quiet or as_json else stack.enter_context(Bar(console))
        listener.trying("loading the task")
        try:
            result = run(load_task(task), budget, **settings, listener=listener)
        except KeyboardInterrupt:
            console.print("stopped: the same command with --resume goes on", markup=False, highlight=False)
            raise
    if as_json:
        typer.echo((result.folder / "result.json").read_text())
    else:
        _print_result(json.loads((result.folder / "result.json").read_text()), result.folder)
    if result.best is None:
        raise typer.Exit(1)


@app.command("apply")
def apply_command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="Such as an artifact's recipe.yaml.")],
    task: TaskArgument,
    out: Annotated[Path, typer.Option(help="Artifact to write.")] = Path("model.hasten"),
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Replay a recipe on a task, without search or certificate."""
    from hasten.compiling import apply
    from hasten.recipe import Recipe
    from hasten.taskfile import load_task
    from hasten.training.progress import quiet as no_training_progress

    if not recipe.is_file():
        raise InvalidInput(f"RECIPE must be a file that exists, but {recipe} does not.")

    def say(line: str) -> None:
        typer.echo(line, err=True)

    with contextlib.ExitStack() as stack:
        if silent := quiet or as_json:
            stack.enter_context(no_training_progress())
        steps = Recipe.from_yaml(recipe.read_text())
        made = apply(steps, load_task(task), out, say=(lambda _: None) if silent else say)
    typer.echo(json.dumps({"artifact": str(made.path)}) if as_json else f"wrote {made.path}")


@app.command("verify")
def verify_command(
    artifact: ArtifactArgument,
    task: Annotated[str | None, typer.Option(help="Certify again on the holdout of this task.")] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check the files, outputs and certificate of an artifact.

    Hashes are compared, the stored inputs are run and the outputs compared; with --task, the drop is certified again.
    """
    from hasten.artifact import Artifact, verify

    found, again = verify(artifact), None
    if not as_json:
        certified = "" if Artifact(artifact).certificate else "; it has no certificate"
        typer.echo(
            f"{artifact}: {found.files} files unchanged, outputs reproduced (largest deviation {found.deviation:.2e})"
            f"{certified}"
        )
    if task is not None:
        from hasten.search.recertify import recertify, seconds_to_recertify
        from hasten.taskfile import load_task

        with waiting("certifying again", quiet=quiet or as_json, expected_s=seconds_to_recertify(artifact)):
            again = recertify(artifact, load_task(task))
    if as_json:
        certificate = None if again is None else again.to_json()
        typer.echo(json.dumps({"files": found.files, "deviation": found.deviation, "certificate": certificate}))
    elif again is not None:
        typer.echo(
            f"on {again.n} certifying samples the drop is {again.drop:.4f}, at most {again.upper_bound:.4f} with "
            f"{again.confidence:.1%} confidence: {'passed' if again.passed else 'not certified'}"
        )
    if again is not None and not again.passed:
        raise typer.Exit(1)


@app.command("bench")
def bench_command(
    artifact: ArtifactArgument,
    against: Annotated[Path | None, typer.Option(help="Another artifact of the same inputs.")] = None,
    batch: Annotated[int, typer.Option(help="Samples per call.")] = 1,
    turns: Annotated[int, typer.Option(help="Rounds.")] = 15,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Time an artifact here, alone or in turns with another."""
    from hasten.measure.artifacts import seconds_to_time, time_artifacts

    artifacts = [artifact] if against is None else [artifact, against]
    with waiting("timing in turns", quiet=quiet or as_json, expected_s=seconds_to_time(len(artifacts), turns)):
        found = time_artifacts(artifacts, batch=batch, turns=turns)
    if as_json:
        typer.echo(json.dumps({name: latency.to_json() for name, latency in found.items()}, indent=2))
        return
    for name, x in found.items():
        ratio = f"; {x.ratio:.2f}x as fast as the first [{x.ratio_low:.2f}, {x.ratio_high:.2f}]" if against else ""
        typer.echo(f"{name}\n  median {x.median_ms:.3f} ms, p90 {x.p90_ms:.3f} ms, p99 {x.p99_ms:.3f} ms{ratio}")


@app.command("report")
def report_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    diagnose: Annotated[
        bool, typer.Option("--doctor", help="Time the best artifact's layers first; a minute.")
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Print the table of a run and write its HTML report again."""
    from hasten.report.data import DOCTOR
    from hasten.report.html import write_report

    if diagnose:
        from hasten.diagnosis.doctor import doctor

        with waiting("timing layers", quiet=quiet or as_json, expected_s=_DOCTOR_SECONDS) as say:
            (run / DOCTOR).write_text(json.dumps(doctor(run / "best.hasten", say=say).to_json()))
    report = write_report(run)
    if not (run / "result.json").is_file():
        raise InvalidInput(f"{run} must hold a finished run for its table, but it has no result.json; see {report}.")
    if as_json:
        typer.echo((run / "result.json").read_text())
        return
    _print_result(json.loads((run / "result.json").read_text()), run)


@app.command("doctor")
def doctor_command(
    subject: Annotated[str, typer.Argument(metavar="TASK|ARTIFACT", help="A task file, or an artifact's folder.")],
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure the machine again.")] = False,
    rows: Annotated[int, typer.Option(help="Layers to show; 0: all.")] = 15,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say what keeps a model from this machine's limit.

    Shows the machine's ceilings, where each layer stands under them, and what would bring most.
    """
    from hasten.diagnosis.doctor import doctor
    from hasten.report.doctor import diagnosis_tables
    from hasten.taskfile import load_task

    opened = Path(subject) if Path(subject).is_dir() else load_task(subject)
    with waiting("measuring this machine", quiet=quiet or as_json, expected_s=_DOCTOR_SECONDS) as say:
        found = doctor(opened, fresh=fresh, say=say).to_json()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    out = _console()
    out = out if out.is_terminal else _console(width=200)
    out.print(diagnosis_tables(found, rows, out.width))


@app.command("init")
def init_command(
    path: Annotated[Path, typer.Argument(metavar="[FILE]", help="File to write [task.py].")] = Path("task.py"),
    kind: Annotated[str | None, typer.Option(help="images, text, numbers or audio.")] = None,
    data: Annotated[str | None, typer.Option(help="Holdout folder or file; empty: random data.")] = None,
    model: Annotated[str | None, typer.Option(help="package.module:function, or a pretrained name.")] = None,
) -> None:
    """Write a task file that runs, from three answers.

    On a terminal it asks for those that are not given as options.
    """
    from hasten.template import KINDS, TO_CHECK, task_file

    if path.exists():
        raise InvalidInput(f"The task file must not exist yet, but {path} does. Name another.")
    ask = sys.stdin.isatty()
    kind = kind or (typer.prompt(f"What does the model take ({', '.join(KINDS)})", "images") if ask else "images")
    if data is None and ask:
        data = typer.prompt("Folder or file of data not trained on (empty: random data)", "", show_default=False)
    if model is None and ask:
        model = typer.prompt("package.module:function or pretrained model (empty: later)", "", show_default=False)
    text = task_file(path.name, kind, data or "", model or "")
    if data and not Path(data).exists():
        typer.echo(f"warning: {data} does not exist yet", err=True)
    try:
        path.write_text(text)
    except OSError as error:
        raise InvalidInput(f"The task file must be in a folder that can be written to, but: {error}") from error
    typer.echo(f"wrote {path}. {TO_CHECK[kind]}\nThen: hasten run {path}")


def _print_result(result: dict[str, Any], folder: Path) -> None:
    from hasten.report.table import result_table

    options: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": not sys.stdout.isatty()}
    console = _console()
    console.print(result_table(result), **options)
    console.print(result["explanation"], **options)
    if result["best"]:
        best = folder / result["best"]
        console.print(f"artifact: {best}   (hasten.load({str(best)!r}), or: hasten serve {best})", **options)
    console.print(f"report:   {folder / 'report.html'}", **options)


register_engine(app)
register_serve(app)
register_listing(app)
add_examples(app)

if __name__ == "__main__":
    main()
