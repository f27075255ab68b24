"""How a run ended, in words, and where its time went."""

from collections.abc import Mapping, Sequence

from hasten.judged import describe
from hasten.recipe import name_of
from hasten.search.finals import Final, Finals
from hasten.search.journal import Journal
from hasten.search.limits import applying
from hasten.search.trial import Trial, fits
from hasten.task import Budget

_BETTER = {
    "latency": "faster than the original",
    "throughput": "the original's throughput",
    "size": "smaller than the original",
    "energy": "less energy per call than the original",
}
_STAGES = {
    "training": ("distill", "train_quantized"),
    "calibrating": (
        "quantize",
        "smooth_quant",
        "equalize_layers",
        "prune_filters",
        "prune_neurons",
        "shrink",
        "lower_resolution",
    ),
    "compiling": ("compile",),
    "measuring": ("original", "load", "latency", "accuracy", "unload", "damage"),
    "setting up": ("capture", "holdout", "identity"),
    "packing": ("pack",),
    "report": ("details",),
}


def explain(passing: Sequence[Final], finals: Finals, trials: Sequence[Trial], budget: Budget) -> str:
    """One sentence: what passed, else what came nearest and why not.

    Args:
        passing: Finalists within the budget, best first.
        finals: All finalists.
        trials: All trials, the original first.
        budget: What was asked for.
    """
    if passing:
        best = passing[0]
        if budget.limits:
            return " ".join(_judged_pass(final, budget) for final in _first_of_each(passing))
        how = f"{best.merit(budget.objective):.2f}x {_BETTER[budget.objective]}"
        return (
            f"{best.trial.name} is {how} and passed: the drop is at most {best.certificate.upper_bound:.4f} "
            f"with {best.certificate.confidence:.0%} confidence."
        )
    if finals.finals:
        return _nearest_final(finals.finals, budget)
    if finals.failed:
        number, why = next(iter(finals.failed.items()))
        return f"Nothing passed: no finalist ran to the end of its final. {trials[int(number)].name}: {why}"
    return _nearest_trial(trials, budget)


def _nearest_final(finals: Sequence[Final], budget: Budget) -> str:
    nearest = min(finals, key=lambda f: f.certificate.upper_bound)
    if nearest.latency is not None and nearest.certificate.passed and nearest.passed(budget):
        return (
            f"Nothing was better than the original. Nearest: {nearest.trial.name}, which kept the accuracy, but is "
            f"{nearest.merit(budget.objective):.2f}x {_BETTER[budget.objective]} in the final timing."
        )
    if nearest.certificate.passed and nearest.latency is not None:
        return (
            f"Nothing passed. Nearest: {nearest.trial.name}, which kept the accuracy, but took "
            f"{nearest.latency.median_ms:.2f} ms in the final timing, above {budget.max_latency_ms:g}."
        )
    return (
        f"Nothing passed. Nearest: {nearest.trial.name}, whose drop of {nearest.certificate.drop:.4f} can only be "
        f"bounded by {nearest.certificate.upper_bound:.4f}, above the budget of {nearest.certificate.max_drop:g}. "
        "More holdout samples or a larger budget would help."
    )


def _nearest_trial(trials: Sequence[Trial], budget: Budget) -> str:
    if len(trials) == 1:
        why = "the deadline ended while the original was being measured" if budget.minutes else "none was left to try"
        return f"No candidate was tried: {why}. Give more `minutes`, or more targets."
    measured = [t for t in trials[1:] if t.measured]
    if not measured:
        return "No candidate could be measured; the trials say why."
    kept = [t for t in measured if t.drop <= budget.max_drop]
    if not kept:
        nearest_trial = min(measured, key=lambda t: t.drop)
        return (
            f"Nothing kept the budget on the search part. Nearest: {nearest_trial.name}, drop {nearest_trial.drop:.4f}."
        )
    best_trial = max(kept, key=lambda t: t.merit)
    if budget.limits:
        own = applying(best_trial.recipe.target, budget.limits)
        return (
            f"Nothing that kept the accuracy was within the limits. Nearest: {best_trial.name}, "
            f"{describe(best_trial.judged, own)} ({best_trial.recipe.target.evidence})."
        )
    assert best_trial.latency is not None
    if fits(best_trial, budget):
        how = f"{best_trial.merit:.2f}x {_BETTER[budget.objective]}"
        return f"Nothing that kept the accuracy was better than the original. Nearest: {best_trial.name}, {how}."
    return (
        f"Nothing that kept the accuracy was within the limits. Nearest: {best_trial.name}, "
        f"{best_trial.latency.median_ms:.2f} ms, {best_trial.size_bytes} bytes."
    )


def _first_of_each(passing: Sequence[Final]) -> list[Final]:
    """The best of every target."""
    first: dict[str, Final] = {}
    for final in passing:
        first.setdefault(name_of(final.trial.recipe.target), final)
    return list(first.values())


def _judged_pass(final: Final, budget: Budget) -> str:
    target, proof = final.trial.recipe.target, final.certificate
    return (
        f"{final.trial.name} passed within the limits: {describe(final.trial.judged, applying(target, budget.limits))} "
        f"({target.evidence}, not timed); the drop is at most {proof.upper_bound:.4f} with "
        f"{proof.confidence:.0%} confidence."
    )


def seconds_by_stage(journal: Journal, concluding: Mapping[str, float]) -> dict[str, float]:
    """Where the wall time of a run went, by the names of `_STAGES` and the finals; the rest is `other`.

    Seconds of untrained networks that were timed count where they were spent. Those of several machines add up.

    Args:
        journal: Of the run.
        concluding: Seconds after its last event: `pack`, `details`.
    """
    spent = dict.fromkeys([*_STAGES, "finals"], 0.0)
    events = [event for kind in ("begin", "trial", "probe", "kept") for event in journal.read(kind)]
    for seconds in [*(event.get("seconds", {}) for event in events), concluding]:
        for stage, names in _STAGES.items():
            spent[stage] += sum(seconds.get(name, 0.0) for name in names)
    step = next((e for e in journal.read("plan") if e["key"] == "training step"), None)
    spent["training"] += sum(e.get("wall_s", 0.0) for e in ([step] if step else []) + journal.read("rate"))
    spent["measuring"] += sum(e.get("wall_s", 0.0) for kind in ("sensitivity", "damage") for e in journal.read(kind))
    chosen, finals = journal.find("finalists"), journal.find("finals")
    if chosen and finals:
        spent["finals"] = finals["elapsed_s"] - chosen["elapsed_s"]
    spent["other"] = max(journal.elapsed_s - sum(spent.values()), 0.0)
    return {stage: round(seconds, 3) for stage, seconds in spent.items()}
