"""`hasten run` on real work: what it finds, how far beyond post-training, where its time goes, how much seeds differ.

    PYTHONPATH=benchmarks python benchmarks/search.py [solar minilm resnet56] [--minutes 10] [--seeds 3]
    PYTHONPATH=benchmarks python benchmarks/search.py --kept efficientnet_lite0 resnet56 [--minutes 10]

Every run is a process-independent call of `hasten.run` with a folder of its own under `runs/search/`; it is resumed
when the script is started again, and not repeated once it has ended. Writes `benchmarks/results/search.json` after each
run and prints a table: the ratio to eager in the final timing, the ratio of the best post-training trial of the same
run, the share of wall time that is neither training, calibration, compilation nor measurement, and the spread of the
ratio over seeds. `resnet56` needs the data folder `HASTEN_BENCH_DATA`.

`--kept` searches nothing: it reads what `hasten-bench tools --peer hasten/search` kept of a search inside the contest,
and sets beside it the best passing peer of `contest-NAME.json`, which `hasten-bench time` measured in turns with it.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import psutil
import torch

import hasten
from hasten.recipe import make_technique
from hasten.search.progress import Silent
from hasten.search.trial import Trial

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "search.json"
BATCH = 128


def solar() -> hasten.Task:
    import solar

    return solar.task()


def minilm() -> hasten.Task:
    import minilm

    return minilm.task()


class Augmented:
    """Batches of shifted and mirrored images in random order, as the network itself was trained."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels, self.generator = images, labels, torch.Generator()

    def __len__(self) -> int:
        return len(self.images) // BATCH

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        from hasten_bench.data.cifar import augment

        order = torch.randperm(len(self.images), generator=self.generator)
        for rows in order.split(BATCH)[: len(self)]:
            yield augment(self.images[rows], self.generator), self.labels[rows]


def resnet56() -> hasten.Task:
    """CIFAR ResNet-56: the training images recover, the images kept out of training are the holdout."""
    from hasten_bench.data import cifar
    from hasten_bench.material import Part
    from hasten_bench.nets.cifar_resnet import network

    images, labels = cifar.decode("cifar10_train.npz")
    training = Part((images[: -cifar.VALIDATION],), labels[: -cifar.VALIDATION])
    model = network(56)
    model.load_state_dict(cifar.fine_tuned(56, training))
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    held = slice(len(x) - cifar.VALIDATION, None)
    return hasten.Task(
        model=model.eval(),
        example=(x[:8],),
        holdout=list(zip(x[held].split(BATCH), y[held].split(BATCH), strict=True)),
        train=Augmented(x[: -cifar.VALIDATION], y[: -cifar.VALIDATION]),
        calibration=list(x[: cifar.CALIBRATION].split(BATCH)),
        name="CIFAR-10, ResNet-56",
    )


WORK: dict[str, Callable[[], hasten.Task]] = {"solar": solar, "minilm": minilm, "resnet56": resnet56}


def folder_of(work: str, minutes: float, seed: int) -> Path:
    return ROOT / "runs" / "search" / f"{work}-{minutes:g}-{seed}"


def measure(work: str, minutes: float, seed: int, targets: str) -> dict[str, Any]:
    """One run, new or resumed."""
    out = folder_of(work, minutes, seed)
    budget = hasten.Budget(max_drop=0.01, minutes=minutes)
    task = WORK[work]()
    hasten.capture(task.model, task.example)  # so that the code it loads counts no more than in `batch_bytes`
    with MemoryWatch() as watch:
        resume = (out / "journal.jsonl").exists()
        result = hasten.run(task, budget, targets=targets, out=out, seed=seed, resume=resume, listener=Silent())
    document = json.loads((result.folder / "result.json").read_text())
    plain = [t for t in result.trials[1:] if t.latency and t.drop <= budget.max_drop and not trained(t)]
    best = next((f for f in result.finals if f.passed(budget)), None)
    return {
        "work": work,
        "minutes": minutes,
        "seed": seed,
        "best": best.trial.name if best else None,
        "trained": trained(best.trial) if best else False,
        "ratio": best.latency.ratio if best else None,
        "ratio_low": best.latency.ratio_low if best else None,
        "ratio_high": best.latency.ratio_high if best else None,
        "drop_at_most": best.certificate.upper_bound if best else None,
        "post_training_ratio": max((t.ratio for t in plain), default=None),
        "trials": len(result.trials),
        "seconds": document["seconds"],
        "wall_s": document["wall_s"],
        "memory": {
            "model_bytes": sum(t.numel() * t.element_size() for t in task.model.state_dict().values()),
            "before_bytes": watch.before_bytes,
            "peak_bytes": watch.peak_bytes,
            "peak_with_children_bytes": watch.peak_with_children_bytes,
            "batch_bytes": batch_bytes(work),
        },
        "device": document["device"],
    }


class MemoryWatch:
    """Resident memory of this process, and of it with all its children, looked at twice a second."""

    def __enter__(self) -> Self:
        self._process = psutil.Process()
        self.before_bytes = self.peak_bytes = self.peak_with_children_bytes = self._process.memory_info().rss
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._ended.wait(0.5):
            own = self._process.memory_info().rss
            whole = own
            for child in self._process.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    whole += child.memory_info().rss
            self.peak_bytes = max(self.peak_bytes, own)
            self.peak_with_children_bytes = max(self.peak_with_children_bytes, whole)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def batch_bytes(work: str) -> int:
    """What two training steps of the original add to the memory of a process of its own."""
    command = [sys.executable, __file__, "--batch-memory", work]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _batch_bytes(work: str) -> int:
    task = WORK[work]()
    graph = hasten.capture(task.model, task.example)
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of reading the data
    make_technique("distill", {"max_steps": 2}).apply(graph, task)
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 - before


def kept(net: str, minutes: float) -> dict[str, Any]:
    """The row of a search that the contest's harness made, with the contest's head-to-head where there is one."""
    from hasten_bench.material import cache

    home = cache() / "jobs" / net / f"hasten-search-{minutes:g}min"
    document = json.loads(next(home.rglob("run/result.json")).read_text())
    trials = {t["number"]: Trial.from_json(t) for t in document["trials"]}
    best = next((f for f in document["finals"] if f["number"] == document["best_number"]), None)
    within = [t for t in trials.values() if t.number and t.latency and t.drop <= document["budget"]["max_drop"]]
    return {
        "work": net,
        "minutes": minutes,
        "seed": document["seed"],
        "best": trials[best["number"]].name if best else None,
        "trained": trained(trials[best["number"]]) if best else False,
        "ratio": best["latency"]["ratio"] if best else None,
        "ratio_low": best["latency"]["ratio_low"] if best else None,
        "ratio_high": best["latency"]["ratio_high"] if best else None,
        "drop_at_most": best["certificate"]["upper_bound"] if best else None,
        "post_training_ratio": max((t.ratio for t in within if not trained(t)), default=None),
        "trials": len(trials),
        "seconds": document["seconds"],
        "wall_s": document["wall_s"],
        "device": document["device"],
        "peers": beside_peers(net, json.loads((home / "answer.json").read_text())["made"]["started"]),
    }


def beside_peers(net: str, started: str) -> dict[str, Any]:
    """From the contest of a network: hasten's search and the fastest that keeps the accuracy of every other peer.

    Empty where the contest timed another search than the one that was `started` then.
    """
    path = RESULTS.parent / f"contest-{net}.json"
    contest = json.loads(path.read_text())["workloads"][0] if path.exists() else {"rows": []}
    ours = next((row for row in contest["rows"] if (row["peer"], row["variant"]) == ("hasten", "search")), None)
    if ours is None or ours["made"].get("started") != started:
        return {}
    passing = [row for row in contest["rows"] if row["quality"] and row["quality"]["keeps"] and row["latency"]]
    fastest: dict[str, Any] = {}
    for row in sorted(passing, key=lambda row: row["latency"]["ratio"]):
        name = f"{row['peer']}/{row['variant']}"
        if row["peer"] != "hasten" or name == "hasten/search":
            fastest[row["peer"]] = {"variant": row["variant"], "ratio": row["latency"]["ratio"]}
    return fastest


def trained(trial: Trial) -> bool:
    return any(step.stage.name != "QUANTIZE" or hasattr(step, "lr") for step in trial.recipe.steps)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line per piece of work, medians over seeds."""
    lines = [
        "| work | minutes | took | seeds | times faster than eager [95%] | post-training | drop at most | spread "
        "| overhead | memory / (3 models + a batch) | in the contest: search, best peer |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for work, minutes in dict.fromkeys((row["work"], row["minutes"]) for row in rows):
        own = [row for row in rows if (row["work"], row["minutes"]) == (work, minutes) and row["ratio"]]
        if not own:
            lines.append(f"| {work} | {minutes:g} | | | nothing passed | | | | | | |")
            continue
        ratios = [row["ratio"] for row in own]
        middle = sorted(own, key=lambda row: row["ratio"])[len(own) // 2]
        interval = f"{middle['ratio']:.2f} [{middle['ratio_low']:.2f}, {middle['ratio_high']:.2f}]"
        plain = statistics.median(row["post_training_ratio"] or 0.0 for row in own)
        bound = max(row["drop_at_most"] for row in own)
        spread = f"{(max(ratios) - min(ratios)) / statistics.median(ratios):.0%}" if len(own) > 1 else ""
        overhead = max(row["seconds"]["other"] / row["wall_s"] for row in own)
        took = f"{max(row['wall_s'] for row in own) / 60:.1f}"
        about = interval, f"{plain:.2f}", f"{bound:.4f}", spread, f"{overhead:.0%}", _memory(own)
        about += (_against(middle.get("peers", {})),)
        cells = work, f"{minutes:g}", took, len(own), *about
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _memory(rows: list[dict[str, Any]]) -> str:
    """The most that a search's process grew by, over three times its model and what training on one batch takes."""
    known = [row["memory"] for row in rows if "batch_bytes" in row.get("memory", {})]
    shares = [(m["peak_bytes"] - m["before_bytes"]) / (3 * m["model_bytes"] + m["batch_bytes"]) for m in known]
    return f"{max(shares):.2f}" if shares else ""


def _against(peers: dict[str, Any]) -> str:
    """In words: the search's ratio to eager, the best peer's, and the first over the second."""
    others = {name: found for name, found in peers.items() if name not in ("hasten", "eager")}
    if "hasten" not in peers or not others:
        return ""
    own, name = peers["hasten"]["ratio"], max(others, key=lambda name: others[name]["ratio"])
    best = others[name]
    return f"{own:.2f}, {best['ratio']:.2f} ({name} {best['variant']}): {own / best['ratio']:.2f}x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="*", choices=[*WORK, []])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--targets", default="auto")
    parser.add_argument("--kept", nargs="+", default=[], help="networks of the contest whose search is kept")
    parser.add_argument("--batch-memory", choices=WORK, help="print what training on a batch adds to memory, and end")
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT / "examples"))
    if given.batch_memory:
        print(_batch_bytes(given.batch_memory))
        return
    rows: list[dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for net in given.kept:
        rows = [row for row in rows if (row["work"], row["minutes"]) != (net, given.minutes)]
        rows.append(kept(net, given.minutes))
        RESULTS.write_text(json.dumps(rows, indent=2) + "\n")
    if given.kept:
        print(table(rows))
        return
    for work in given.work or WORK:
        for seed in range(given.seeds):
            same = (work, given.minutes, seed)
            known = any((row["work"], row["minutes"], row["seed"]) == same for row in rows)
            if known and (folder_of(*same) / "result.json").exists():
                continue
            rows = [row for row in rows if (row["work"], row["minutes"], row["seed"]) != same]
            rows.append(measure(work, given.minutes, seed, given.targets))
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            RESULTS.write_text(json.dumps(rows, indent=2) + "\n")
            print(table(rows), flush=True)


if __name__ == "__main__":
    main()
