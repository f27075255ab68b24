"""What tools handed back is kept: a tool runs again only if something that its program is made from has changed.

So tools can run at any time, on a busy machine too, and what they made is timed later, when the machine is quiet.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from hasten_bench import environments, results, tool
from hasten_bench.handover import Handover
from hasten_bench.material import REPOSITORY, cache
from hasten_bench.registry import Peer
from hasten_bench.settings import Settings
from hasten_bench.tool import Answer

NOT_FINISHED = "not finished"
_USE_HASTEN = ("hasten", "eager")


def home(net: str, peer: Peer, variant: str, settings: Settings) -> Path:
    """Folder of one variant's work on a network; those that spend `settings.minutes` have one for each budget."""
    budget = f"-{settings.minutes:g}min" if variant in peer.budgeted else ""
    return cache() / "jobs" / net / f"{peer.name}-{variant}{budget}"


def answer(peer: Peer, variant: str, handover: Handover, settings: Settings, limit_s: float, fresh: bool) -> Answer:
    """The kept answer if it is made from the same things, else a new one.

    Args:
        peer: Whom.
        variant: For what.
        handover: The work.
        settings: How much to spend.
        limit_s: When the tool's process is ended.
        fresh: Ask again in any case.
    """
    folder = home(handover.workload.name, peer, variant, settings)
    wanted = made_from(peer, handover)
    known = read(folder)
    if not fresh and known is not None and known.made_from == wanted and not _worth_another(known, limit_s):
        return known
    made = results.circumstances() | {"work": handover.key, "limit_s": round(limit_s)}
    if variant in peer.budgeted:
        made["minutes"] = settings.minutes
    found = tool.ask(peer, variant, handover, folder, minutes=settings.minutes, limit_s=limit_s)
    found = replace(found, made_from=wanted, made=made)
    write(found, folder)
    return found


def read(folder: Path) -> Answer | None:
    """The answer kept in a folder, or None."""
    path = folder / "answer.json"
    return Answer.from_json(json.loads(path.read_text())) if path.exists() else None


def write(found: Answer, folder: Path) -> None:
    """Keep an answer beside its program."""
    folder.mkdir(parents=True, exist_ok=True)
    results.write(found.to_json(), folder / "answer.json")


def made_from(peer: Peer, handover: Handover) -> str:
    """A digest of the handed-over work, the peer's file and packages, and where it uses hasten, of hasten's source."""
    digest = hashlib.sha256(handover.key.encode())
    digest.update(peer.path.read_bytes())
    digest.update(environments.CONSTRAINTS.read_bytes() if peer.requirements else b"")
    if peer.name in _USE_HASTEN:
        for path in sorted((REPOSITORY / "src" / "hasten").rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _worth_another(known: Answer, limit_s: float) -> bool:
    """Whether it ran out of a smaller limit than the one it has now."""
    return known.failure.startswith(NOT_FINISHED) and limit_s > 1.05 * float(known.made.get("limit_s", 0))
