"""docs/reliability.md from what `reliability.py`, `mutants.py`, `supply.py` and `deployed.py` kept."""

import json
from pathlib import Path
from typing import Any

FRESH = Path(__file__).parent / "results" / "mutants_fresh.json"
MUTANTS = Path(__file__).parent / "results" / "mutants.json"
FILES = {
    "test_compiler": "a compiler that crashes, hangs, fills memory or the disk",
    "test_faults": "runtimes, loaders, losses and disks that fail during a search",
    "test_no_orphans": "a parent that is killed",
    "test_machine_faults": "a disk that fills up, folders that cannot be written, a clock that jumps",
    "test_hostile_artifacts": "artifacts and recipes that somebody made to harm",
    "test_fuzz": "random and changed manifests, arrays, recipes, journals, plans and requests",
    "test_fuzz_server": "hostile and random bytes over HTTP connections and in gRPC messages",
    "test_random_networks": "random networks through capture, pruning, quantization and targets",
}


def page(results: dict[str, Any]) -> str:
    """docs/reliability.md."""
    lines = [
        "# Reliability",
        "",
        "What was done to hasten, and what was left afterwards. Made by `benchmarks/reliability.py`; do not edit.",
        "What each party is trusted with is in the [threat model](threat-model.md).",
        "",
    ]
    if "kills" in results:
        lines += _kills_section(results["kills"])
    if "tests" in results:
        lines += _tests_section(results["tests"])
    if "networks" in results:
        lines += _networks_section(results["networks"])
    if MUTANTS.exists():
        lines += _mutants_section(json.loads(MUTANTS.read_text()))
    if "coverage" in results:
        lines += _coverage_section(results["coverage"])
    if "deployed" in results:
        lines += _deployed_section(results["deployed"])
    if "supply" in results:
        lines += _supply_section(results["supply"])
    return "\n".join(lines)


def _kills_section(seen: dict[str, Any]) -> list[str]:
    phases = ", ".join(f"{count} after `{name}`" for name, count in sorted(seen["by_phase"].items()))
    problems = [f"- {x}" for x in seen["problems"]] or ["No problem was seen."]
    return [
        "## Searches that are killed",
        "",
        f"A search over `examples/digits.py` was killed with `kill -9` at {seen['kills']} random moments, up to "
        f"{seen['longest_s']:g} s of processor time after it was started or resumed, and resumed each time; by the "
        f"last event on record: {phases}.",
        "",
        "| seen | count |",
        "|---|---|",
        f"| searches that came to their end through these kills | {seen['searches_finished']} |",
        f"| finished trials on record when a search was resumed, still there when it ended | {seen['trials_kept']} |",
        f"| finished trials that were done again | {seen['trials_done_twice']} |",
        f"| child processes that ran at a kill, all of which had to end by themselves | {seen['children_at_kill']} |",
        f"| seconds until the last of them had ended, at worst | {seen['slowest_end_s']:g} |",
        f"| artifacts found in the run folders and verified | {seen['artifacts_checked']} |",
        f"| problems | {len(seen['problems'])} |",
        "",
        *problems,
        "",
    ]


def _tests_section(found: dict[str, Any]) -> list[str]:
    rows = []
    for name, about in FILES.items():
        outcomes = [way for test, way in found["outcomes"].items() if test.startswith(f"{name}::")]
        rows.append(f"| `{name}.py` | {about} | {outcomes.count('passed')} of {len(outcomes)} |")
    return [
        "## Faults and hostile input",
        "",
        f"`tests/hardening`, with {found['examples']} random examples for each property of `test_fuzz.py`.",
        "",
        "| file | what goes wrong | passed |",
        "|---|---|---|",
        *rows,
        "",
    ]


def _networks_section(found: dict[str, Any]) -> list[str]:
    outcome = "all agreed within the bounds that the file states"
    if found["failed"]:
        outcome = f"**not all agreed**, in {len(found['failed'])} of the fifties that they were drawn in"
    return [
        "## Random networks",
        "",
        f"{found['count']} networks that nobody designed (`tests/hardening/test_random_networks.py`: convolutions, "
        "norms, residuals, concatenations, attention) were captured, pruned, stored, quantized and run by PyTorch, "
        f"ONNX Runtime and OpenVINO: {outcome}. It took {found['seconds']} s.",
        "",
    ]


def _mutants_section(found: dict[str, Any]) -> list[str]:
    mutants = found["mutants"].values()
    rooms = sorted({x["file"].split("/")[0] for x in mutants})
    rows = []
    for room in [*rooms, ""]:
        mine = [x for x in mutants if x["file"].startswith(room)]
        killed = sum(not x["survived"] for x in mine)
        rows.append(f"| {room or 'all'} | {len(mine)} | {killed} | {killed / len(mine):.0%} |")
    alive = [
        f"- `{x['file']}:{x['line']}`: `{x['old']}` → `{x['new'] or '(nothing)'}`" for x in mutants if x["survived"]
    ]
    tried = f"The first {len(mutants)} of" if len(mutants) < found["drawn"] else "All of"
    return [
        "## Mutation testing",
        "",
        f"Of {found['places']} places in `graph/`, `measure/` and the arithmetic of `quantization/` where an operator "
        f"or a number can be changed, {found['drawn']} were drawn at random (seed {found['seed']}). {tried} them were "
        "tried, each against the tests of its room (`benchmarks/mutants.py`).",
        "",
        "| room | tried | noticed by a test | share |",
        "|---|---|---|---|",
        *rows,
        "",
        *_fresh(),
        *(["Not noticed, or without an effect that could be:", "", *alive, ""] if alive else []),
    ]


def _fresh() -> list[str]:
    """Of a sample that no test was written for; `same` is a person's reason why a mutant computes the same."""
    if not FRESH.exists():
        return []
    found = json.loads(FRESH.read_text())
    alive = [x for x in found["mutants"].values() if x["survived"]]
    missed, same = ([x for x in alive if ("same" in x) == wanted] for wanted in (False, True))
    tried, killed = len(found["mutants"]), len(found["mutants"]) - len(alive)
    there = [f"- `{x['file']}:{x['line']}` `{x['old']}` computes the same: {x['same']}." for x in same]
    listed = "; ".join(f"`{x['file']}:{x['line']}` `{x['old']}`" for x in missed)
    return [
        "Tests were added because of what that sample showed, so that its share says little about the rest. Of "
        f"another, drawn afterwards (seed {found['seed']}), **{killed} of {tried}** were noticed, "
        f"{killed / (tried - len(same)):.0%} of those that compute something else; not: {listed}.",
        "",
        *there,
        *([""] if there else []),
    ]


def _coverage_section(found: dict[str, Any]) -> list[str]:
    least = ", ".join(f"`{name.partition('hasten/')[2]}` {percent:.0f}%" for name, percent in found["least"].items())
    return [
        "## Coverage",
        "",
        f"The fast tests run {found['percent']:.1f}% of {found['lines']} lines in {found['files']} files, child "
        f"processes included. The least, most of them code for hardware or stacks that were not there: {least}.",
        "",
    ]


def _deployed_section(rows: list[dict[str, Any]]) -> list[str]:
    columns = ("python", "versions", "stored", "modules", "problem")
    table = [f"| {' | '.join(str(x[name] or 'none') for name in columns)} |" for x in rows]
    return [
        "## Versions",
        "",
        "Other interpreters without PyTorch, as where an artifact is deployed (`benchmarks/deployed.py`): the stored "
        "artifact of the first schema is run, and every module that needs no PyTorch is imported, warnings as errors. "
        "`.ci/matrix` runs all tests on the oldest and newest versions with PyTorch; it was not run for this page.",
        "",
        "| Python | versions | outputs reproduced | modules imported | problem |",
        "|---|---|---|---|---|",
        *table,
        "",
    ]


def _supply_section(found: dict[str, Any]) -> list[str]:
    asking = ", ".join(f"`{name}` ({licence})" for name, licence in found["asking"].items())
    audit = found["audit"]
    if audit["ran"]:
        holes = "; ".join(audit["holes"]) or "none"
        audited = f"`make audit` asked for {audit['packages']} packages; known holes: {holes}."
    else:
        audited = f"`make audit` was **not run** to its end: its service could not be asked ({audit['why']})."
        if newest := found.get("newest"):
            holes = "; ".join(newest["holes"]) or "none"
            audited += (
                f" PyPI's own pages tell of a package's newest version: that is what {newest['newest']} of "
                f"{newest['pinned']} pins name; known holes of these: {holes}."
            )
    return [
        "## Supply chain",
        "",
        f"`make sbom` lists {found['components']} components of the environment that tests and demo run in. "
        f"`requirements-test.txt` pins {found['pinned']} packages with {found['hashes']:,} SHA-256 hashes. Licences "
        f"that ask for more than naming the authors, or that their package does not state: {asking}.",
        "",
        audited,
        "",
    ]
