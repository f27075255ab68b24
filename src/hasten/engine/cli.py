"""The commands of the engine; `register` adds them to the `hasten` command."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hasten.errors import InvalidInput


def register(app: typer.Typer) -> None:
    """Add `batch`."""
    app.command("batch")(batch_command)


def batch_command(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Folder made by run or apply; of one input.")],
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help=".npy, .parquet, .tar, or a folder of images or these.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder; a stopped job goes on in it.")],
    shard_rows: Annotated[int, typer.Option(help="Rows per output file.")] = 4096,
    column: Annotated[str | None, typer.Option(help="Parquet column to read.")] = None,
    size: Annotated[int | None, typer.Option(help="Pixels, if the model takes any size.")] = None,
    mean: Annotated[str, typer.Option(help="Per channel, of values in [0, 1]: 0.485,0.456,0.406.")] = "",
    std: Annotated[str, typer.Option(help="Per channel, of values in [0, 1]: 0.229,0.224,0.225.")] = "",
    crop: Annotated[float, typer.Option(help="Share of the shorter side to keep, centred.")] = 1.0,
    decoder: Annotated[str, typer.Option(help="pillow or opencv.")] = "pillow",
    parquet: Annotated[bool, typer.Option("--parquet", help="Write Parquet instead of .npz.")] = False,
    replicas: Annotated[int, typer.Option(help="Batches at a time; 0: by the cores.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads inside one call; 0: by the cores.")] = 0,
    ray: Annotated[
        str | None,
        typer.Option(help="Run on Ray Data: an address, auto or local."),
    ] = None,
    actors: Annotated[int, typer.Option(help="Workers on Ray; 0: one per core of the cluster.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the result.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Run an artifact over files: streaming and resumable.

    For models of one input. Written atomically, shard by shard; run again, it goes on where it stopped.
    """
    from hasten.engine.batch import run_batch

    options: dict[str, Any] = {
        "shard_rows": shard_rows,
        "column": column,
        "size": size,
        "mean": parse_numbers(mean, "mean"),
        "std": parse_numbers(std, "std"),
        "crop": crop,
        "decoder": decoder,
        "parquet": parquet,
    }
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet or as_json) as bar:
        shown = bar.add_task("rows", total=None)

        def progress(done: int, total: int | None) -> None:
            bar.update(shown, completed=done, total=total)

        if ray is None:
            report = run_batch(
                artifact, source, output, replicas=replicas, threads=threads, progress=progress, **options
            )
        else:
            from hasten.engine.on_ray import run_batch_on_ray

            report = run_batch_on_ray(
                artifact, source, output, address=ray, actors=actors, progress=progress, **options
            )
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(report)))
        return
    typer.echo(
        f"{report.rows} rows in {report.seconds:.1f} s ({report.rows / report.seconds:.0f} rows/s), "
        f"{report.shards} {'shard' if report.shards == 1 else 'shards'} written, {report.skipped} found done; "
        + ", ".join(f"{name} {share:.0%} busy" for name, share in report.use.items())
        + f"; bottleneck: {report.bottleneck}"
    )


def parse_numbers(text: str, name: str) -> tuple[float, ...]:
    """`0.1,0.2` as (0.1, 0.2); an empty text as ().

    Raises:
        InvalidInput: Not numbers.
    """
    try:
        return tuple(float(x) for x in text.split(",")) if text else ()
    except ValueError:
        raise InvalidInput(f"`--{name}` must be numbers like 0.1,0.2,0.3, but got {text!r}.") from None
