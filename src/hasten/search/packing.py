"""What certified finalists are packed with: certificate, timings or judged quantities."""

from collections.abc import Sequence
from typing import Any

from hasten.artifact import Artifact
from hasten.recipe import describe, name_of
from hasten.search.finals import Final
from hasten.search.limits import applying
from hasten.search.session import Session
from hasten.search.ship import ship


def ship_final(session: Session, final: Final, name: str) -> Artifact:
    """Write a finalist that passed as the artifact `name` in the run folder."""
    out = session.folder / name
    if out.exists():  # a resume of a run that had come this far
        return Artifact(out)
    found: dict[str, Any] = {}
    if final.latency is not None and final.throughput is not None:
        found = {"latency": final.latency.to_json(), "throughput": final.throughput.to_json()}
    # It holds for the program as it is loaded: threads decide the order of sums.
    certificate = final.certificate.to_json() | {"program": describe(final.trial.recipe.target)}
    if final.trial.judged:
        statement = judgement(session, final)
        found |= statement
        certificate |= statement
    return ship(session.bench, final.trial, out, certificate=certificate, measurements=found)


def judgement(session: Session, final: Final) -> dict[str, Any]:
    """What was judged of a finalist, how, and the limits that it was held to."""
    target = final.trial.recipe.target
    limits = applying(target, session.budget.limits)
    return {"judged": final.trial.judged, "limits": limits, "evidence": target.evidence}


def ship_each(session: Session, passing: Sequence[Final], best: Artifact) -> dict[str, Artifact]:
    """The best of every judged target, by name: `best` for the target of the first, `best-NAME.hasten` for others."""
    found: dict[str, Artifact] = {}
    for final in passing:
        name = name_of(final.trial.recipe.target)
        if name not in found:
            found[name] = ship_final(session, final, f"best-{name}.hasten") if found else best
    return found
