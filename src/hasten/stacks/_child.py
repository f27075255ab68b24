"""The child's side of `hasten.environments`: one JSON line in, one JSON line out, until the parent closes the pipe.

`_child.py STACK` serves a stack; `_child.py -m MODULE` runs a module of hasten in the environment.
"""

import importlib
import importlib.util
import json
import os
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def main(stack: str) -> None:
    """Serve the functions of `hasten.stacks.STACK`."""
    # Compilers print to standard output; keep the pipe for answers alone.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    _only_hasten()
    importlib.import_module("hasten.children").follow_parent()
    module = importlib.import_module(f"hasten.stacks.{stack}")
    program: list[Any] = []
    for line in sys.stdin:
        message = json.loads(line)
        try:
            answer = {"result": _call(module, program, message["function"], message["values"])}
        except Exception as error:
            answer = {"kind": type(error).__name__, "error": str(error).strip()[:2000]}
        answers.write(json.dumps(answer) + "\n")


def _call(module: ModuleType, program: list[Any], function: str, values: dict[str, Any]) -> Any:
    values = {key: Path(value) if key == "folder" else value for key, value in values.items()}
    if function == "load":
        program[:] = [module.load(**values)]
        return None
    if function == "run_program":
        return _run(program[0], **values)
    return getattr(module, function)(**values)


def _run(program: Any, folder: Path, inputs: int) -> int:
    import numpy as np

    outputs = program(*(np.load(folder / f"input_{index}.npy", allow_pickle=False) for index in range(inputs)))
    for index, y in enumerate(outputs):
        np.save(folder / f"output_{index}.npy", np.ascontiguousarray(y), allow_pickle=False)
    return len(outputs)


def _only_hasten() -> None:
    """Make hasten importable from where this file lies, without the packages that are installed beside it."""
    package = Path(__file__).parents[1]
    spec = importlib.util.spec_from_file_location(
        "hasten", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["hasten"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["hasten"])


if __name__ == "__main__":
    if sys.argv[1] == "-m":
        _only_hasten()
        runpy.run_module(sys.argv[2], run_name="__main__")
    else:
        main(sys.argv[1])
