"""`hasten-bench`: run the contest, the growth curves, or render what was measured."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hasten.errors import HastenError, InvalidInput

if TYPE_CHECKING:
    from hasten_bench.registry import Peer

app = typer.Typer(
    name="hasten-bench",
    help="hasten beside its peers, on the same work, in one run.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point of the `hasten-bench` command."""
    try:
        app()
    except HastenError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


@app.callback(invoke_without_command=True)
def contest_command(
    context: typer.Context,
    peer: Annotated[list[str] | None, typer.Option(help="Only these peers (and the baseline); repeatable.")] = None,
    net: Annotated[list[str] | None, typer.Option(help="Only these networks; repeatable.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer networks, rows and turns.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON to write; default: benchmarks/results/.")] = None,
) -> None:
    """Run the peers on the work list and write the results as JSON."""
    if context.invoked_subcommand is not None:
        return
    from hasten_bench import contest, registry, results, workloads

    chosen_peers = [registry.peer(name) for name in peer] if peer else list(registry.peers().values())
    if all(p.name != "eager" for p in chosen_peers):
        chosen_peers.insert(0, registry.peer("eager"))
    known = workloads.workloads()
    work = [workloads.workload(n) for n in net] if net else [w for w in known.values() if w.quick or not quick]
    settings = contest.QUICK if quick else contest.Settings()
    document = results.provenance(sys.argv[1:], settings) | {"kind": "contest", "workloads": []}
    goal = (
        out or results.FOLDER / f"contest-{'quick-' if quick else ''}{document['started'].replace(':', '')[:17]}.json"
    )
    _install(chosen_peers)
    for item in work:
        entrants = [(p, variant) for p in chosen_peers for variant in p.asked_for(item, quick)]
        before = results.load_average()
        found = contest.run_workload(item, entrants, settings, typer.echo)
        loads = {"load_average_before": before, "load_average_after": results.load_average()}
        document["workloads"].append(found | loads)
        results.write(document, goal)
    typer.echo(f"wrote {goal}")


@app.command("install")
def install_command() -> None:
    """Make the peers' environments; a contest makes those that are missing by itself."""
    from hasten_bench import registry

    _install(list(registry.peers().values()))


@app.command("growth")
def growth_command(
    largest: Annotated[float, typer.Option(help="Largest network, in million parameters.")] = 1000,
    out: Annotated[Path | None, typer.Option(help="JSON to write; default: benchmarks/results/.")] = None,
) -> None:
    """Time and memory of each stage of hasten against the size of the network and of the calibration set."""
    from hasten_bench import contest, growth, results

    if not largest > 0:
        raise InvalidInput(f"`largest` must be above 0, but got {largest}.")
    document = results.provenance(sys.argv[1:], contest.Settings()) | {"kind": "growth"}
    goal = out or results.FOLDER / f"growth-{document['started'].replace(':', '')[:17]}.json"
    results.write(document | growth.run(largest * 1e6, typer.echo), goal)
    typer.echo(f"wrote {goal}")


@app.command("render")
def render_command() -> None:
    """Write docs/benchmarks.md and the headline of README.md from the results."""
    from hasten_bench import render

    for path in render.render():
        typer.echo(f"wrote {path}")


@app.command("list")
def list_command() -> None:
    """List the peers with their variants, and the networks."""
    from hasten_bench import registry, workloads

    for p in registry.peers().values():
        typer.echo(f"{p.name:20} {p.title}: {', '.join(p.variants)}")
    for w in workloads.workloads().values():
        typer.echo(f"{w.name:20} {w.title}")


def _install(chosen: list["Peer"]) -> None:
    """Before anything is timed; what cannot be installed is said again in its rows."""
    from hasten_bench import environments

    for peer in chosen:
        try:
            environments.python_for(peer.name, peer.requirements)
        except environments.InstallFailed as error:
            typer.echo(f"{peer.name} cannot be installed: {error}")
