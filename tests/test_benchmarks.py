"""The harness beside the benchmarks: a tiny job through every step with two peers, and the parts that judge."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from hasten.errors import InvalidInput
from hasten.measure.arrays import ArrayFile
from hasten_bench import contest, environments, growth, judge, kept, registry, render, results, run_peer, timing, tool
from hasten_bench.handover import Handover
from hasten_bench.settings import Settings
from hasten_bench.workloads import workload, workloads

ENGLISH = render.READMES["README.md"]
TINY = Settings(turns=3, test_rows=100, largest_batch=2, minutes=0.1, limit_s=120)


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("sklearn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HASTEN_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        known = registry.peers()
        entrants = [(known["eager"], "fp32"), (known["onnxruntime"], "fp32"), (known["onnxruntime"], "static_int8")]
        contest.ask_tools(workload("digits"), entrants, TINY, lambda line: None)
        found = contest.time_kept(workload("digits"), entrants, TINY, lambda line: None)
        # A second time nothing runs again.
        patch.setattr(tool, "ask", None)
        contest.ask_tools(workload("digits"), entrants, TINY, lambda line: None)
    run = results.provenance(["--quick"], TINY) | {"kind": "contest", "quick": True, "workloads": [found]}
    return json.loads(json.dumps(run | {"file": "x.json"}))


def test_a_job_goes_through_every_step(document: dict[str, Any]) -> None:
    rows = {f"{row['peer']}/{row['variant']}": row for row in document["workloads"][0]["rows"]}
    assert [row["failure"] for row in rows.values()] == ["", "", ""]
    assert rows["eager/fp32"]["latency"]["ratio"] == 1
    # The same network in another runtime: no answer changes, and on 100 rows nothing can be proven within a point.
    same = rows["onnxruntime/fp32"]["quality"]
    assert same["drop"] == 0
    assert same["keeps"]
    assert not same["proven"]
    assert rows["onnxruntime/static_int8"]["size_bytes"] < 0.6 * rows["onnxruntime/fp32"]["size_bytes"]
    assert rows["onnxruntime/static_int8"]["tool"]["lines"] > rows["onnxruntime/fp32"]["tool"]["lines"] > 2


def test_results_render_and_name_what_is_missing(document: dict[str, Any]) -> None:
    work = render.latest([document])
    page = render.document(work, None)
    assert page.index("Where hasten is not the fastest") < page.index("small CNN, handwritten digits")
    assert "hasten has no row that keeps the accuracy" in page
    assert page.count("| ONNX Runtime |") == 2


def _final(hasten_ms: float, peer_ms: float) -> dict[str, Any]:
    def latency(ms: float) -> dict[str, Any]:
        ratio = hasten_ms / ms
        return {"median_ms": ms, "ratio": ratio, "ratio_low": 0.8 * ratio, "ratio_high": 1.1 * ratio}

    timed = {"hasten/search": latency(hasten_ms), "nncf/int8": latency(peer_ms), "eager/fp32": latency(10.0)}
    run = {"device": {"cpu": "a CPU", "cores": 2}, "quick": False}
    return {"net": "n", "title": "Net", "trained": True, "rows": [], "run": run} | {
        "finals": {"hasten": "hasten/search", "latency": timed}
    }


def test_a_faster_peer_is_named_first_and_a_slower_one_is_not() -> None:
    assert "NNCF + OpenVINO, int8 is 2.00" in render.not_fastest({"n": _final(2.0, 1.0)})[0]
    assert render.not_fastest({"n": _final(1.0, 2.0)}) == [render.NOWHERE]


@pytest.mark.parametrize(("rows", "takes"), [(2, True), (1, False)])
def test_a_program_that_answers_one_row_of_a_batch_has_no_throughput(tmp_path: Path, rows: int, takes: bool) -> None:
    class Program:
        def infer(self, *_: Any) -> list[ArrayFile]:
            return [ArrayFile(tmp_path / "out", (rows, 4), "float32")]

    assert timing.takes_batches(Program(), [], tmp_path) == takes


def test_a_peer_of_more_throughput_is_named_if_it_keeps_the_accuracy() -> None:
    def row(peer: str, per_s: float, keeps: bool = True) -> dict[str, Any]:
        found = {"peer": peer, "variant": "int8", "failure": "", "quality": {"keeps": keeps}}
        return found | {"throughput": {"samples_per_s": per_s}}

    item = _final(1.0, 2.0)
    item["rows"] = [row("hasten", 10), row("nncf", 15), row("olive", 90, keeps=False), row("eager", 1)]
    (found,) = render.not_fastest({"n": item})
    assert "NNCF + OpenVINO, int8 reaches 1.50 times that of hasten, int8" in found
    item["rows"][0] = row("hasten", 20)
    assert render.not_fastest({"n": item}) == [render.NOWHERE]


def test_headline_comes_between_the_markers_from_the_results() -> None:
    before = f"# x\n{render.BEGIN}\nold 99x\n{render.END}\nrest"
    after = render.with_headline(before, render.headline({"n": _final(1.0, 2.0)}, ENGLISH))
    assert "99x" not in after
    assert "10.0x" in after
    assert "2.00x [1.82, 2.50] (NNCF + OpenVINO, int8)" in after
    assert after.endswith("rest")


def test_a_busy_machine_is_said_beside_the_numbers() -> None:
    item = _final(1.0, 2.0)
    assert "busy" not in render.headline({"n": item | {"load_average_before": [0.3, 0, 0]}}, ENGLISH)
    assert "busy" in render.headline({"n": item | {"load_average_before": [7.0, 0, 0]}}, ENGLISH)


def test_a_full_run_outranks_a_later_quick_one() -> None:
    full = {"quick": False, "started": "1", "workloads": [{"net": "n", "rows": [1]}]}
    quick = {"quick": True, "started": "2", "workloads": [{"net": "n", "rows": [2]}]}
    assert render.latest([full, quick])["n"]["rows"] == [1]


def test_rendering_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="must be results"):
        render.render(tmp_path, tmp_path)


def test_a_failed_tool_keeps_its_row_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "peer.py"
    path.write_text("def broken(job):\n    raise ValueError('no such layer')\n\nVARIANTS = {'broken': broken}\n")
    peer = registry.Peer("x", "X", path, (), ("broken",), {}, ())
    handover = type("Handover", (), {"folder": tmp_path})()
    answer = tool.ask(peer, "broken", handover, tmp_path / "job", minutes=0.1, limit_s=60)
    assert answer.failure == "ValueError: no such layer"
    assert answer.program == {}


def test_a_tool_is_asked_again_only_when_something_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_BENCH_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "peer.py"
    path.write_text("")
    peer = registry.Peer("x", "X", path, (), ("slow", "search"), {}, (), budgeted=("search",))
    handover = SimpleNamespace(key="work-1", workload=workload("digits"))
    asked = []

    def ask(peer: registry.Peer, variant: str, handover: Any, home: Path, **limits: float) -> tool.Answer:
        asked.append((variant, limits["limit_s"]))
        return tool.Answer(peer.name, variant, home / "out", failure="not finished after 5 s")

    monkeypatch.setattr(tool, "ask", ask)

    def answer(variant: str, limit_s: float = 5, minutes: float = 1, fresh: bool = False) -> int:
        settings = Settings(minutes=minutes)
        kept.answer(peer, variant, cast(Handover, handover), settings, limit_s, fresh)
        return len(asked)

    assert answer("slow") == 1
    assert answer("slow") == 1
    assert answer("slow", limit_s=4, minutes=9) == 1  # it would not finish in less either
    assert answer("slow", limit_s=50) == 2
    assert answer("slow", limit_s=50, fresh=True) == 3
    path.write_text("# changed")
    assert answer("slow", limit_s=50) == 4
    handover.key = "work-2"
    assert answer("slow", limit_s=50) == 5
    assert answer("search") == 6
    assert answer("search", minutes=2) == 7  # a budget of its own
    assert answer("search") == 7


def test_a_tool_that_does_not_end_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "peer.py"
    path.write_text("def endless(job):\n    while True:\n        pass\n\nVARIANTS = {'endless': endless}\n")
    peer = registry.Peer("x", "X", path, (), ("endless",), {}, ())
    handover = type("Handover", (), {"folder": tmp_path})()
    answer = tool.ask(peer, "endless", handover, tmp_path / "job", minutes=0.1, limit_s=1)
    assert answer.failure == "not finished after 1 s"


def test_what_cannot_be_installed_is_remembered_with_pips_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HASTEN_BENCH_VENVS", str(tmp_path))
    made = []

    def refuse(folder: Path, requirements: tuple[str, ...], base: Path | None, log: Path) -> str:
        made.append(folder.name)
        return "" if base is None else "no matching distribution"

    monkeypatch.setattr(environments, "_make", refuse)
    (tmp_path / "base" / "bin").mkdir(parents=True)
    for _ in range(2):
        with pytest.raises(environments.InstallFailed, match="no matching distribution"):
            environments.python_for("x", ("nothing==1.0",))
    assert made.count("x") == 1


def test_every_variant_is_for_some_work_and_every_requirement_is_pinned() -> None:
    for peer in registry.peers().values():
        assert set(peer.kinds) == set(peer.variants), peer.name
        assert set(peer.needs_rows) <= set(peer.variants), peer.name
        assert any(peer.asked_for(w) for w in workloads().values()), peer.name
        assert all("==" in requirement for requirement in peer.requirements), peer.name


def test_lines_are_counted_without_comments_and_with_helpers(tmp_path: Path) -> None:
    path = tmp_path / "peer.py"
    path.write_text(
        'def one(job):\n    """Text."""\n    # a remark\n    return _two(\n        1\n    )\n\n'
        "def _two(x):\n    return x\n\ndef other(job):\n    return 3\n\nVARIANTS = {'one': one}\n"
    )
    assert run_peer.lines_of(run_peer.load("a_peer", path), "one") == 4


def test_spearman_is_judged_on_pairs() -> None:
    rng = np.random.default_rng(0)
    original = rng.standard_normal((400, 8))
    human = judge.pair_cosines(original)
    kept = judge.judge(workload("minilm"), original, original, human)
    assert (kept.value, kept.drop, kept.keeps, kept.proven) == (pytest.approx(1), 0, True, True)
    lost = judge.judge(workload("minilm"), rng.standard_normal((400, 8)), original, human)
    assert not lost.keeps
    assert lost.drop_upper > lost.drop > 0.5


def test_slopes_of_known_growth() -> None:
    points = [
        {"family": "cnn", "axis": "parameters", "stage": "s", "size": n, "seconds": 3 * n**1.5, "peak_bytes": 7 * n}
        for n in (10, 100, 1000, 10000)
    ]
    (fit,) = growth.slopes([*points, points[0] | {"seconds": 0, "stage": "alone"}])
    assert math.isclose(fit["seconds"]["slope"], 1.5, rel_tol=1e-6)
    assert math.isclose(fit["peak_bytes"]["slope"], 1.0, rel_tol=1e-6)


def test_half_a_pair_is_judged_by_the_original_s_other_half() -> None:
    from scipy.stats import spearmanr

    from hasten_bench.job import rank_correlation

    random = np.random.default_rng(0)
    own, other = random.normal(size=(2, 300, 8))
    human = np.round(random.normal(size=300), 1)  # ties
    similarity = (own * other).sum(1) / (np.linalg.norm(own, axis=1) * np.linalg.norm(other, axis=1))
    expected = spearmanr(similarity, human).statistic
    assert rank_correlation(own, np.column_stack([other, human])) == pytest.approx(expected)


def test_a_handed_over_network_can_be_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle
    import sys

    import torch
    from safetensors.torch import save_file

    from hasten_bench.job import Job

    text = (
        "from torch import nn\n\nclass Net(nn.Linear):\n    def forward(self, x):\n        return super().forward(x)\n"
    )
    (tmp_path / "network.py").write_text(f"{text}\ndef network():\n    return Net(3, 2)\n")
    save_file({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, tmp_path / "weights.safetensors")
    (tmp_path / "work.json").write_text('{"options": {}}')
    monkeypatch.delitem(sys.modules, "handed_over_network", raising=False)
    model = Job(tmp_path, tmp_path, 1, 1.0).network()
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(torch.ones(1, 3)), model(torch.ones(1, 3)))
    monkeypatch.delitem(sys.modules, "handed_over_network")
