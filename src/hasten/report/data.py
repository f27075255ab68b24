"""What the report page shows: all that the run folder holds, whether the run has ended or not. Nothing is invented."""

import json
from pathlib import Path
from typing import Any

from hasten.errors import HastenError, InvalidInput

DETAILS = "details.json"
DOCTOR = "doctor.json"
_SHOWN_ROWS = 60


def run_data(folder: Path) -> dict[str, Any]:
    """The data of the page; a section whose data is absent is absent here too.

    Raises:
        InvalidInput: The folder holds no run.
    """
    try:
        return _run_data(folder)
    except HastenError:
        raise
    except Exception as error:  # somebody else's run may hold anything
        raise InvalidInput(f"{folder} must hold a run, but: {type(error).__name__}: {error!s:.200}") from error


def _run_data(folder: Path) -> dict[str, Any]:
    events = _events(folder / "journal.jsonl")
    result = _json(folder / "result.json")
    begin = next((e for e in events if e["event"] == "begin"), None) or result
    if begin is None:
        raise InvalidInput(f"A report needs a run, but {folder} has no result.json. Run `hasten run` first.")
    finals = result["finals"] if result else _finals(events)
    trials = result["trials"] if result else [e for e in events if e["event"] == "trial"]
    times = {e["number"]: e["elapsed_s"] for e in events if e["event"] == "trial" and "elapsed_s" in e}
    found: dict[str, Any] = {
        "finished": result is not None,
        "task": begin["task"],
        "device": begin["device"],
        "budget": begin["budget"],
        "seed": begin["seed"],
        "missing": begin.get("missing", {}),
        "targets": begin.get("is", {}).get("targets", []),
        "samples": {"search": begin.get("search"), "certify": begin.get("certify")},
        "trials": [_trial(t, times) for t in trials],
        "finals": finals,
        "elapsed_s": events[-1].get("elapsed_s") if events else None,
        "best": None,
        # Only a mean of right and wrong answers has an interval without the answers themselves.
        "binary": any("proportions" in final["certificate"]["method"] for final in finals),
    }
    if result:
        found |= {key: result.get(key) for key in ("explanation", "original", "seconds", "wall_s", "best")}
        found["best_number"] = result["best_number"]
    decisions = [e for e in events if e["event"] == "decision"]
    optional = {
        "decisions": [
            {k: e.get(k) for k in ("what", "chosen", "why", "elapsed_s", "predicted_gain")} for e in decisions
        ],
        "sensitivity": _sensitivity(folder),
        "details": _json(folder / DETAILS),
        "doctor": _doctor(_json(folder / DOCTOR)),
    }
    return found | {key: value for key, value in optional.items() if value}


def _events(path: Path) -> list[dict[str, Any]]:
    """All whole events; a line that is being written is passed over."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def _finals(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    event = next((e for e in events if e["event"] == "finals"), None)
    return list(event.get("finals", [])) if event else []


def _trial(trial: dict[str, Any], times: dict[int, float]) -> dict[str, Any]:
    keys = ("number", "name", "recipe", "failure", "latency", "score", "drop", "changed", "size_bytes",
            "peak_memory_bytes", "seconds", "judged", "evidence")  # fmt: skip
    return {key: trial.get(key) for key in keys} | {"elapsed_s": times.get(trial["number"])}


def _sensitivity(folder: Path) -> list[dict[str, Any]]:
    """Damage by group and share removed, as the search measured it."""
    found = []
    for path in sorted(folder.glob("sensitivity-*.json")):
        content = json.loads(path.read_text())
        found.append({"technique": path.stem.removeprefix("sensitivity-"), "drops": content["drops"]})
    return found


def _doctor(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """Of a diagnosis only what the roofline needs: the slowest nodes of the artifact's own program."""
    if not found:
        return None
    own = next((v for v in found["versions"] if v["name"] == found["now"]), found["versions"][0])
    rows = sorted(own["rows"], key=lambda row: -row["time_us"])[:_SHOWN_ROWS]
    layers = {layer["label"]: layer for layer in found["layers"]}
    keys = ("label", "kind", "precision", "time_us", "share", "floor_us", "achieved", "reason")
    points = []
    for row in rows:
        mine = [layers[label] for label in row["layers"] if label in layers]
        elements = sum(x["weight_elements"] + x["activation_elements"] for x in mine)
        point = {key: row[key] for key in keys}
        points.append(point | {"operations": sum(x["operations"] for x in mine), "elements": elements})
    limits = {k: found["machine"][k] for k in ("peaks", "cache_bytes_per_s", "dram_bytes_per_s")}
    return {"program": own["name"], "rows": points, "limits": limits, "ceilings_ms": found["ceilings_ms"]}
