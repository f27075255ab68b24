"""What hasten runs reports to nobody what it was used for."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hasten.errors import InvalidInput
from hasten.unreported import import_ray

SOURCE = Path(__file__).parent.parent / "src" / "hasten"
_WATCHED = """
import sys
forks = []
sys.addaudithook(lambda name, _: forks.append(name) if name in ("os.fork", "socket.connect") else None)
import tempfile
from pathlib import Path
from onnx import TensorProto, helper, save_model
from hasten.recipe import make_target
value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
with tempfile.TemporaryDirectory() as folder:
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), folder + "/model.onnx")
    make_target("openvino").convert(Path(folder, "model.onnx"), Path(folder))
    make_target("openvino").load(Path(folder))
import time
time.sleep(1)
print(forks, "openvino_telemetry" in sys.modules)
"""


def test_openvino_forks_nothing_and_connects_to_nobody() -> None:
    pytest.importorskip("openvino")
    done = subprocess.run([sys.executable, "-c", _WATCHED], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"


def test_ray_starts_without_usage_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    with contextlib.suppress(InvalidInput):
        import_ray()
    assert os.environ.pop("RAY_USAGE_STATS_ENABLED") == "0"


def test_only_one_place_imports_them() -> None:
    direct = re.compile(r"^\s*(import|from) (openvino|ray)\b", re.MULTILINE)
    assert [path.name for path in SOURCE.rglob("*.py") if direct.search(path.read_text())] == []
