"""The report page, as data and in a real browser."""

import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folder import write_run
from torch import nn

import hasten
from hasten.errors import InvalidInput
from hasten.report.data import run_data
from hasten.report.html import write_report
from hasten.report.live import LivePage
from hasten.search.details import noise, widths

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# Acts as a person would and writes down what the page then shows.
ACTIONS = """
const seen = {}, settled = () => new Promise(done => setTimeout(done, 300));
(async () => {
  await settled();
  const front = document.getElementById("front");
  seen.rows = document.querySelectorAll("tr[data-trial]").length;
  seen.sections = [...document.querySelectorAll("section")].map(s => s.id);
  const group = front.data.findIndex(trace => trace.customdata && trace.customdata.some(c => c[0] === 1));
  const index = front.data[group].customdata.findIndex(c => c[0] === 1);
  front.emit("plotly_click", {points: [{customdata: front.data[group].customdata[index]}]});
  await settled();
  seen.chosen = document.querySelector("#trial h3").textContent;
  seen.recipe = document.querySelector("#trial pre").textContent;
  seen.selected = [...document.querySelectorAll("tr[aria-selected=true]")].map(r => r.dataset.trial);
  const row = document.querySelector("tr[data-trial='0']");
  row.focus();
  row.dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", bubbles: true}));
  await settled();
  seen.keyboard = document.querySelector("#trial h3").textContent;
  seen.contents = [...document.querySelectorAll("#contents a")].map(a => a.getAttribute("href"));
  seen.figures = [...document.querySelectorAll(".figure strong")].map(x => x.textContent);
  seen.verdict = document.querySelector("p.verdict").textContent;
  seen.commands = document.querySelector("#reproduce-section pre").textContent;
  const drawn = () => [...document.querySelectorAll(".chart.js-plotly-plot")].map(c => c.id);
  seen.atFirst = drawn();
  document.getElementById("sensitivity").scrollIntoView();
  dispatchEvent(new Event("scroll"));  // headless, a frame that would say so may never come
  await settled();
  seen.scrolled = drawn();
  seen.folded = [...document.querySelectorAll("details")].map(d => d.open);
  dispatchEvent(new Event("beforeprint"));
  seen.paper = [document.documentElement.dataset.theme, ...[...document.querySelectorAll("details")].map(d => d.open)];
  seen.onPaper = drawn();
  dispatchEvent(new Event("afterprint"));
  seen.after = [...document.querySelectorAll("details")].map(d => d.open);
  const names = [...document.querySelectorAll("td.name")].map(td => td.textContent);
  seen.names = names.filter(name => /\\d\\.\\d{4}/.test(name));
  document.getElementById("language").click();
  await settled();
  seen.chineseVerdict = document.querySelector("p.verdict").textContent;
  seen.chinese = document.querySelector("#trials-section h2").textContent;
  seen.axis = document.getElementById("front").layout.xaxis.title.text;
  document.getElementById("theme").click();
  await settled();
  seen.ground = getComputedStyle(document.body).backgroundColor;
  const filter = document.getElementById("filter");
  filter.value = "eager"; filter.dispatchEvent(new Event("input"));
  await settled();
  seen.filtered = document.querySelectorAll("tr[data-trial]").length;
  const place = document.createElement("pre");
  place.id = "seen"; place.textContent = JSON.stringify(seen);
  document.body.append(place);
})();
"""


def browse(url: str, width: int = 1280) -> tuple[str, list[str]]:
    """The page's elements after its scripts ran in a window of some width, and what the console reported as wrong."""
    assert CHROMIUM is not None
    command = [CHROMIUM, f"--window-size={width},900", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
               "--virtual-time-budget=20000",
               "--enable-logging=stderr", "--v=0", url]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=True)
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", 30)
    return tmp_path / "run"


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_person_can_choose_a_trial_and_the_language(folder: Path) -> None:
    report = write_report(folder)
    acted = report.with_name("acted.html")
    acted.write_text(report.read_text().replace("</body>", f"<script>{ACTIONS}</script></body>"))
    dom, said = browse(acted.as_uri())
    assert said == []
    found = re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None
    seen: dict[str, Any] = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert seen["rows"] == 30
    expected = ("verdict", "front", "trials", "certificates", "reproduce", "timeline", "stages", "decisions", "widths",
                "sensitivity", "quantization", "distribution")  # fmt: skip
    assert seen["sections"] == [f"{name}-section" for name in expected]
    assert seen["contents"] == [f"#{name}-section" for name in expected]
    assert seen["figures"] == ["9.00×", "≤ 0.0044", "50 KB"]
    assert seen["verdict"] == "it passed"
    assert "9.00 倍并通过认证" in seen["chineseVerdict"]
    assert "--targets eager,onnxruntime" in seen["commands"]
    assert not any(seen["folded"] + seen["after"])
    assert seen["paper"] == ["light", *[True] * len(seen["folded"])]
    charts = ["front", "timeline", "stages", "widths", "sensitivity", "quantization", "distribution"]
    assert seen["atFirst"] == ["front", "timeline"]
    assert "sensitivity" in seen["scrolled"]
    assert seen["onPaper"] == charts
    assert seen["names"] == []
    assert seen["chosen"] == "Trial 1: onnxruntime"
    assert "onnxruntime:" in seen["recipe"]
    assert seen["selected"] == ["1"]
    assert seen["keyboard"] == "Trial 0: original (PyTorch eager)"
    assert seen["chinese"] == "试验"
    assert "毫秒" in seen["axis"]
    assert seen["ground"] in ("rgb(20, 23, 26)", "rgb(255, 255, 255)")
    assert seen["filtered"] == 1


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_nothing_is_wider_than_a_narrow_window(folder: Path) -> None:
    report = write_report(folder)
    widths = "document.title = [document.documentElement.scrollWidth, innerWidth].join()"
    report.write_text(report.read_text().replace("</body>", f"<script>{widths}</script></body>"))
    dom, _ = browse(report.as_uri(), width=500)  # headless Chromium has no narrower window
    found = re.search(r"<title>(\d+),(\d+)</title>", dom)
    assert found is not None
    assert int(found[1]) <= int(found[2]) <= 500


# A reader types and has opened a table while the search goes on.
LIVE_ACTIONS = """
(async () => {
  const filter = document.getElementById("filter");
  filter.focus(); filter.value = "eager"; filter.dispatchEvent(new Event("input"));
  document.getElementById("decisions-details").open = true;
  await new Promise(done => setTimeout(done, 50));
  const chart = document.getElementById("front");
  data.trials[0].name = "changed";
  build();
  const now = document.getElementById("filter");
  document.title = [document.activeElement === now, now.value, document.getElementById("decisions-details").open,
    document.getElementById("front") === chart].join();
})();
"""


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_new_data_leaves_a_reader_where_he_was(folder: Path) -> None:
    report = write_report(folder)
    report.write_text(report.read_text().replace("</body>", f"<script>{LIVE_ACTIONS}</script></body>"))
    dom, said = browse(report.as_uri())
    assert said == []
    assert "<title>true,eager,true,true</title>" in dom


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_live_page_shows_a_running_search(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with LivePage(folder) as live:
        assert "measuring the original" in _get(live.url)
        write_run(folder, 5, finished=False)
        assert len(json.loads(_get(live.url + "data.json"))["trials"]) == 5
        dom, said = browse(live.url)
        assert said == []
        assert dom.count("<tr tabindex=") == 5
        assert "searching, 5 trials" in dom
        with pytest.raises(urllib.error.HTTPError, match="404"):
            _get(live.url + "journal.jsonl")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            _get(live.url, Host="example.com")


def _get(url: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
        return str(answer.read().decode())


def test_the_file_is_small_and_loads_nothing(folder: Path) -> None:
    page = write_report(folder).read_text()
    assert len(page.encode()) < 6e6
    own = page[: page.index("<script>")] + page[page.rindex("<script>") :]
    assert "http://" not in own
    assert "https://" not in own
    assert "<b>" not in page[: page.index("<script>")]  # the task's name is text, not markup


def test_nothing_is_shown_that_the_folder_does_not_hold(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 5, finished=False)
    found = run_data(tmp_path / "run")
    assert not found["finished"]
    assert {"details", "doctor", "sensitivity", "explanation"}.isdisjoint(found)
    with pytest.raises(InvalidInput, match="needs a run"):
        run_data(tmp_path)


def test_a_line_that_is_being_written_is_passed_over(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 3, finished=False)
    with (tmp_path / "run" / "journal.jsonl").open("a") as journal:
        journal.write('{"event": "trial", "numb')
    assert len(run_data(tmp_path / "run")["trials"]) == 3


def test_noise_of_rounding_is_measured_layer_by_layer() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 5)).eval()
    x = torch.randn(16, 3, 8, 8)
    task = hasten.Task(net, (x,), holdout=[x])
    graph = hasten.capture(net, (x,))
    assert widths(graph) == {"0": 8, "2": 4, "4": 5}
    rows = noise(graph, hasten.Quantize().apply(graph, task), (x,))
    assert [row["layer"] for row in rows] == ["0", "2", "4"]
    with torch.no_grad():
        first = net[0](x)
    assert rows[0]["low"] == pytest.approx(float(first.min()), rel=1e-5)
    assert all(20 < row["sqnr_db"] < 60 for row in rows)
    assert rows[0]["held_high"] >= 0.95 * rows[0]["high"]


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_run_that_was_judged_shows_no_speed(folder: Path) -> None:
    result = json.loads((folder / "result.json").read_text())
    journal = folder / "journal.jsonl"
    begin, *rest = journal.read_text().splitlines()
    event = json.loads(begin)
    event["budget"]["limits"] = {"luts": 40000}
    journal.write_text("\n".join([json.dumps(event), *rest, ""]))
    for trial in result["trials"][1:]:
        if not trial["failure"]:
            trial |= {"latency": None, "judged": {"luts": 1234.0, "cycles": 7.0}, "evidence": "simulated"}
    result["finals"][0] |= {"latency": None, "throughput": None}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "details.json").unlink()
    page, said = browse(write_report(folder).as_uri())
    assert said == []
    assert "luts 1,234 (limit 40,000), cycles 7" in page
    assert "Judged, not timed" in page
    assert "--limit luts=40000" in page
    shown = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "x faster" not in shown
    assert 'id="timeline"' not in shown
    assert shown.count('data-trial="') == len(result["trials"])


def test_what_did_not_win_is_not_shown_as_the_winner(tmp_path: Path) -> None:
    """Its accuracy is certified, but it was not faster; and of few samples a bound may be infinite."""
    write_run(tmp_path / "run", 5)
    path = tmp_path / "run" / "result.json"
    result = json.loads(path.read_text()) | {"best": None, "best_number": None}
    result["finals"][0]["certificate"]["upper_bound"] = float("inf")
    path.write_text(json.dumps(result))
    assert run_data(tmp_path / "run")["best_number"] is None
    assert "Infinity" not in write_report(tmp_path / "run").read_text(encoding="utf-8").rpartition("<script>")[2]
