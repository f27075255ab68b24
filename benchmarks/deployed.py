"""An artifact where it is deployed, without PyTorch and perhaps in another Python: the stored one in each of several.

    python benchmarks/deployed.py /path/to/python3.12 /path/to/python3.13

Each interpreter must have onnxruntime and numpy, and may have what `serve` needs; hasten is imported from `src`.
"""

import argparse
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from reliability import ROOT, store

# What training, capturing and compiling import; a module that needs one of these is not one of deployment.
_NEEDS = ("torch", "torchao", "optuna", "onnx", "onnxscript", "PIL", "pyarrow", "ray", "jax", "triton", "cv2", "google")
_CODE = """
import importlib, importlib.metadata, importlib.util, json, pkgutil, platform, sys, warnings

warnings.simplefilter("error")
import hasten

imported = 0
for module in pkgutil.walk_packages(hasten.__path__, "hasten.", onerror=lambda _: None):
    if module.name.startswith(("hasten.stacks.", "hasten.gpu.")):
        continue
    try:
        importlib.import_module(module.name)
        imported += 1
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in json.loads(sys.argv[1]):
            raise
assert "torch" not in sys.modules, "PyTorch must not be there"
from hasten.artifact import verify

deviation = verify("tests/data/schema-1-onnxruntime").deviation
names = ("numpy", "onnxruntime", "openvino")
versions = [f"{n} {importlib.metadata.version(n)}" for n in names if importlib.util.find_spec(n)]
found = {"python": platform.python_version(), "versions": ", ".join(versions), "modules": imported}
print(json.dumps(found | {"stored": f"to {deviation:.0e} of the largest" if deviation else "exactly"}))
"""


def row(python: Path) -> dict[str, Any]:
    """What one interpreter saw, or the last line of what it raised."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [str(python), "-c", _CODE, json.dumps(_NEEDS)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:200]
        return {"python": python.name, "versions": "", "stored": "no", "modules": 0, "problem": last}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"problem": ""}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", type=Path, nargs="+")
    rows = [row(python) for python in parser.parse_args().pythons]
    store("deployed", rows)
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
