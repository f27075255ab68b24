"""`hasten-bench`: run the contest, the growth curves, or render what was measured."""

import os
import signal
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from hasten.errors import HastenError, InvalidInput, unknown

if TYPE_CHECKING:
    from hasten_bench.registry import Peer
    from hasten_bench.settings import Settings
    from hasten_bench.workloads import Workload

app = typer.Typer(
    name="hasten-bench",
    help="hasten beside its peers, on the same work, in one run.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point of the `hasten-bench` command."""
    # Ended from outside, it still ends the tool that it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        app()
    except HastenError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


Peers = Annotated[list[str] | None, typer.Option("--peer", help="Only these peers, or PEER/VARIANT; repeatable.")]
Nets = Annotated[list[str] | None, typer.Option("--net", help="Only these networks; repeatable.")]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer networks, rows and turns.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Run tools again although what they made is kept.")]
Limit = Annotated[float | None, typer.Option("--limit", help="Minutes after which a tool is ended.")]
Minutes = Annotated[
    float | None, typer.Option("--minutes", help="Minutes that a tool may spend searching or training.")
]


@app.callback(invoke_without_command=True)
def contest_command(
    context: typer.Context,
    peer: Peers = None,
    net: Nets = None,
    quick: Quick = False,
    fresh: Fresh = False,
    limit: Limit = None,
    minutes: Minutes = None,
) -> None:
    """Run the tools whose programs are not kept yet, then time everything and write the results as JSON."""
    if context.invoked_subcommand is None:
        tools_command(peer, net, quick, fresh, limit, minutes)
        time_command(peer, net, quick, limit, minutes)
    elif peer or net or quick or fresh or limit or minutes:
        command = context.invoked_subcommand
        raise InvalidInput(f"Options must follow the command, but came before `{command}`: move them behind it.")


@app.command("tools")
def tools_command(
    peer: Peers = None,
    net: Nets = None,
    quick: Quick = False,
    fresh: Fresh = False,
    limit: Limit = None,
    minutes: Minutes = None,
) -> None:
    """Run the tools and keep what they make; any time, on a busy machine too."""
    from hasten_bench import contest

    chosen, settings = _peers(peer), _settings(quick, limit, minutes)
    _install(chosen)
    for item in _work(net, quick):
        contest.ask_tools(item, _entrants(chosen, item, quick), settings, typer.echo, fresh)


@app.command("time")
def time_command(
    peer: Peers = None, net: Nets = None, quick: Quick = False, limit: Limit = None, minutes: Minutes = None
) -> None:
    """Time what is kept, on a quiet machine, and write one JSON per network to benchmarks/results/."""
    from hasten_bench import contest, results

    # Programs run as they would anywhere, not with the threads that this shell was given.
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        os.environ.pop(name, None)
    chosen, settings = _peers(peer), _settings(quick, limit, minutes)
    for item in _work(net, quick):
        document = results.provenance(sys.argv[1:], settings) | {"kind": "contest", "quick": quick or bool(peer)}
        found = contest.time_kept(item, _entrants(chosen, item, quick), settings, typer.echo)
        goal = results.FOLDER / f"{'quick' if document['quick'] else 'contest'}-{item.name}.json"
        results.write(document | {"workloads": [found]}, goal)
        typer.echo(f"wrote {goal}")


@app.command("install")
def install_command() -> None:
    """Make the peers' environments; a contest makes those that are missing by itself."""
    from hasten_bench import registry

    _install(list(registry.peers().values()))


@app.command("growth")
def growth_command(
    axis: Annotated[str, typer.Option(help="Measure against parameters, samples, trials, or all.")] = "all",
    largest: Annotated[float, typer.Option(help="Largest network, in million parameters.")] = 1000,
    fresh: Fresh = False,
) -> None:
    """Time and memory of each stage of hasten against the network, the calibration set and the number of trials."""
    from hasten_bench import growth, results
    from hasten_bench.settings import Settings

    if not largest > 0:
        raise InvalidInput(f"`largest` must be above 0, but got {largest}.")
    if axis not in (axes := ("all", "parameters", "samples", "trials")):
        raise unknown("axis", axis, axes)
    document = results.provenance(sys.argv[1:], Settings()) | {"kind": "growth"}
    goal = results.FOLDER / "growth.json"
    results.write(document | growth.run(axis, largest * 1e6, typer.echo, fresh), goal)
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


def _peers(names: list[str] | None) -> list["Peer"]:
    """Those named, or all; of `PEER/VARIANT` that variant alone. The baseline comes in any case."""
    from hasten_bench import registry

    chosen: dict[str, Peer] = {}
    for name in names or list(registry.peers()):
        wanted, _, variant = name.partition("/")
        found = registry.peer(wanted)
        if variant and variant not in found.variants:
            raise unknown("variant", variant, found.variants)
        kept = chosen[wanted].variants if wanted in chosen else ()
        chosen[wanted] = replace(found, variants=(*kept, variant)) if variant else found
    return list(({"eager": registry.peer("eager")} | chosen).values())


def _work(names: list[str] | None, quick: bool) -> list["Workload"]:
    from hasten_bench import workloads

    known = workloads.workloads().values()
    return [workloads.workload(n) for n in names] if names else [w for w in known if w.quick or not quick]


def _entrants(chosen: list["Peer"], item: "Workload", quick: bool) -> list[tuple["Peer", str]]:
    return [(p, variant) for p in chosen for variant in p.asked_for(item, quick)]


def _settings(quick: bool, limit: float | None, minutes: float | None) -> "Settings":
    from hasten_bench import settings

    for name, value in (("limit", limit), ("minutes", minutes)):
        if value is not None and not value > 0:
            raise InvalidInput(f"`{name}` must be above 0, but got {value}.")
    found = settings.QUICK if quick else settings.Settings()
    found = found if limit is None else replace(found, limit_s=60 * limit)
    return found if minutes is None else replace(found, minutes=minutes)


def _install(chosen: list["Peer"]) -> None:
    """Before anything is timed; what cannot be installed is said again in its rows."""
    from hasten_bench import environments

    for peer in chosen:
        try:
            environments.python_for(peer.name, peer.requirements)
        except environments.InstallFailed as error:
            typer.echo(f"{peer.name} cannot be installed: {error}")
