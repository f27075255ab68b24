"""Trials on Ray: the order of what comes back, and a run over several nodes on this machine, one of them killed."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

import hasten
from hasten.errors import InvalidInput
from hasten.machine import fingerprint
from hasten.search.distributed import TrialMaker, _differences
from hasten.search.journal import Journal
from hasten.search.progress import Silent
from hasten.task import Budget

HAS_RAY = importlib.util.find_spec("ray") is not None


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_without_ray_the_extra_is_named_before_anything_is_done(digits_task: hasten.Task, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"pip install 'hasten\[ray\]'"):
        hasten.run(digits_task, out=tmp_path / "run", ray="auto")
    assert not (tmp_path / "run").exists()


def test_another_device_class_is_refused_by_name() -> None:
    other = fingerprint() | {"cpu": "Another 9000", "memory_bytes": 1}
    assert _differences(fingerprint() | {"memory_bytes": 1}, fingerprint()) == ""
    assert "its cpu 'Another 9000', the driver's" in _differences(other, fingerprint())
    maker = TrialMaker([], {"torch": 1, "environment": {}})
    assert "another device class" in maker.open(b"", "node", other)


class Killer(Silent):
    """Kills a node while it makes its first trial."""

    def __init__(self, cluster: Any) -> None:
        self.cluster, self.lines, self.tried = cluster, list[str](), 0
        self.victim = next(iter(cluster.worker_nodes))

    def trying(self, what: str) -> None:
        """The fourth trial is begun when one of three nodes has become free, so two are at work."""
        self.tried += what.startswith(("eager", "onnxruntime", "quantize", "openvino"))
        if self.tried == 4 and self.victim in self.cluster.worker_nodes:
            self.cluster.remove_node(self.victim, allow_graceful=False)

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray and its dependencies warn about themselves
def test_one_of_three_nodes_killed_every_trial_once_and_in_order(
    cluster: Any, digits_task: hasten.Task, tmp_path: Path
) -> None:
    killer = Killer(cluster)
    lost = killer.victim.node_id[:6]
    budget = Budget(max_drop=0.02, objective="size", training=False)
    targets = ["onnxruntime", "openvino"]
    result = hasten.run(digits_task, budget, targets=targets, out=tmp_path / "run", ray="auto", listener=killer)
    journal = Journal(tmp_path / "run" / "journal.jsonl")
    trials = journal.read("trial")[1:]
    assert killer.victim not in cluster.worker_nodes
    assert [t["number"] for t in trials] == list(range(1, len(trials) + 1))
    assert len({t["key"] for t in trials}) == len(trials) >= 4
    assert all(t["failure"] == "" and t["size_bytes"] > 0 for t in trials)
    took_part = journal.read("nodes")[0]["names"]
    assert len(took_part) == 3
    assert sum(lost in name for name in took_part) == 1
    nodes = {t["node"] for t in trials}
    assert len(nodes) >= 2
    # Whatever was begun on the lost node after its last answer was made by another.
    last = max((t["number"] for t in trials if lost in t["node"]), default=0)
    assert all(lost not in t["node"] for t in trials if t["number"] > max(last, 3))
    assert any("several nodes are on" in line for line in killer.lines)
    resumed = hasten.run(digits_task, budget, targets=targets, out=tmp_path / "run", resume=True)
    assert [t.name for t in resumed.trials] == [t.name for t in result.trials]
