"""The command line: bad input ends with one clear line and exit code 2, never a traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hasten.artifact import Artifact
from hasten.errors import InvalidInput
from hasten.quantities import parse_share, parse_size
from onnx_weights import weights_of

ROOT = Path(__file__).parent.parent


def hasten(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hasten.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=300)


def test_run_report_verify_bench_and_apply_on_digits(tmp_path: Path) -> None:
    run = tmp_path / "run"
    task = str(ROOT / "examples" / "digits.py")
    done = hasten("run", task, "--max-drop", "2%", "--targets", "onnxruntime", "--no-training", "--out", str(run))
    assert done.returncode == 0, done.stderr
    assert "passed" in done.stdout
    best = run / "best.hasten"
    assert str(best) in done.stdout

    done = hasten("verify", str(best))
    assert done.returncode == 0, done.stderr
    assert "outputs reproduced" in done.stdout

    done = hasten("verify", str(best), "--task", task)
    assert done.returncode == 0, done.stderr
    certificate = json.loads((best / "certificate.json").read_text())
    assert f"on {certificate['n']} certifying samples the drop is {certificate['drop']:.4f}" in done.stdout

    done = hasten("report", str(run))
    assert done.returncode == 0, done.stderr
    assert "original (eager)" in done.stdout

    again = tmp_path / "again.hasten"
    done = hasten("apply", str(best / "recipe.yaml"), task, "--out", str(again))
    assert done.returncode == 0, done.stderr
    assert weights_of(again / "model.onnx") == weights_of(best / "model.onnx")
    assert "it has no certificate" in hasten("verify", str(again)).stdout
    assert "it has no certificate" not in hasten("verify", str(best)).stdout

    done = hasten("bench", str(best), "--against", str(again), "--turns", "3", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found[str(best)]["ratio"] == 1.0
    assert found[str(again)]["turns"] == 3


def test_run_with_json_prints_only_json(tmp_path: Path) -> None:
    task = str(ROOT / "examples" / "digits.py")
    done = hasten(
        "run", task, "--max-drop", "2%", "--targets", "null", "--no-training", "--out", str(tmp_path / "run"), "--json"
    )
    assert done.returncode == 1  # nothing passed
    assert json.loads(done.stdout)["best"] is None


BROKEN = {
    "syntax.py": "def task(:",
    "raises.py": "raise RuntimeError('no data here')",
    "library.py": "import json\n\nvalues = json.loads('')",
    "nothing.py": "",
    "wrong.py": "def task(): return 3",
    "loader.py": """
import torch, hasten
def task(): return hasten.Task(torch.nn.Linear(3, 2), (torch.zeros(2, 3),), [(torch.zeros(2, 3), 1, 2)])
""",
    "control_flow.py": """
import torch, hasten
class Net(torch.nn.Module):
    def forward(self, x): return x if x.sum() > 0 else -x
def task(): return hasten.Task(Net(), (torch.zeros(2, 3),), [torch.zeros(2, 3)])
""",
    "labels.py": """
import torch, hasten
def task(): return hasten.Task(torch.nn.Linear(3, 2), (torch.zeros(2, 3),), [(torch.zeros(2, 3), torch.tensor([1, 2]))])
""",
    "dtype.py": """
import torch, hasten
def task():
    return hasten.Task(torch.nn.Linear(3, 2), (torch.zeros(2, 3),), [torch.zeros(2, 3, dtype=torch.uint8)])
""",
    "nan.py": """
import torch, hasten
class Net(torch.nn.Module):
    def forward(self, x): return x / 0 * 0
def task(): return hasten.Task(Net(), (torch.ones(2, 3),), [torch.ones(2, 3)])
""",
}


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("syntax.py", "raised SyntaxError"),
        ("raises.py", "raised RuntimeError: no data here"),
        ("library.py", "library.py, line 3)"),
        ("nothing.py", "has no function 'task'"),
        ("wrong.py", "returned a int"),
        ("loader.py", "must yield (inputs, target) pairs"),
        ("control_flow.py", "must be exportable"),
        ("labels.py", "Count classes from 0"),
        ("dtype.py", "Cast one of them"),
        ("nan.py", "must give finite outputs"),
        ("absent.py", "a Python file that exists"),
        ("no.such.module:task", "raised ModuleNotFoundError"),
        ("notafile", "must be `path/to/file.py`"),
    ],
)
def test_a_bad_task_is_one_clear_line(file: str, message: str, tmp_path: Path) -> None:
    if file in BROKEN:
        (tmp_path / file).write_text(BROKEN[file])
    done = hasten("run", file, "--out", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "x.py", "--max-drop", "much"], "`--max-drop` must be a number like 0.01 or 1%"),
        (["run", "x.py", "--max-drop", "0%"], "`max_drop` must be above 0"),
        (["run", "x.py", "--max-size", "big"], "`--max-size` must be a size like 256KB or 4MB"),
        (["run", "x.py", "--objective", "latencies"], "Did you mean 'latency'"),
        (["run", "x.py", "--confidence", "2"], "`confidence` must be in [0.5, 1)"),
        (["verify", "nowhere"], "must be a folder with a manifest.json"),
        (["report", "nowhere"], "needs a run"),
        (["apply", "nowhere.yaml", "x.py"], "must be a file that exists"),
    ],
)
def test_a_bad_argument_is_one_clear_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = hasten(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_tampered_artifact_is_refused(digits_artifact: Artifact, tmp_path: Path) -> None:
    copy = digits_artifact.save(tmp_path / "copy.hasten").path
    (copy / "recipe.yaml").write_text("target: eager")
    done = hasten("verify", str(copy))
    assert done.returncode == 2
    assert "'recipe.yaml' has another SHA-256" in done.stderr


def test_targets_and_techniques_are_listed() -> None:
    listed = json.loads(hasten("targets", "--json").stdout)
    assert {"eager", "inductor", "onnxruntime", "openvino", "null"} <= set(listed)
    assert listed["null"]["state"] == "usable"
    assert "threads" in listed["onnxruntime"]["options"]
    assert "quantize" in hasten("techniques").stdout


@pytest.mark.parametrize(("text", "value"), [("1%", 0.01), ("0.01", 0.01), (" 2.5 % ", 0.025), ("1e-3", 0.001)])
def test_shares_are_read(text: str, value: float) -> None:
    assert parse_share(text, "--max-drop") == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "x", "1..2", "%"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_share(text, "--max-drop")


@pytest.mark.parametrize(
    ("text", "value"), [("256KB", 256_000), ("4MB", 4_000_000), ("1.5gb", 1_500_000_000), ("12", 12), ("2 k", 2000)]
)
def test_sizes_are_read_as_bytes(text: str, value: int) -> None:
    assert parse_size(text, "--max-size") == value


@pytest.mark.parametrize("text", ["", "MB", "4 XB", "-1"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_size(text, "--max-size")
