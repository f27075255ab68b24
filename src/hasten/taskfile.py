"""Find and call the function that returns the user's task: `file.py[:function]` or `package.module:function`."""

import importlib
import importlib.util
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType

from hasten.errors import HastenError, InvalidInput
from hasten.task import Task

DEFAULT_FUNCTION = "task"


def load_task(reference: str) -> Task:
    """The task that `reference` names; a file's function is called `task` unless named after a colon.

    Raises:
        InvalidInput: The reference names nothing, its code raises, or it does not return a Task.
    """
    place, _, function = reference.rpartition(":") if ":" in reference else (reference, "", DEFAULT_FUNCTION)
    try:
        module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place, reference)
        maker = getattr(module, function, None)
        if not callable(maker):
            raise InvalidInput(
                f"TASK must name a function that returns a hasten.Task, but {place} has no function {function!r}. "
                f"Define `def {function}() -> hasten.Task`, or name another as {place}:name."
            )
        task = maker()
    except HastenError:
        raise
    except Exception as error:
        raise InvalidInput(
            f"TASK must load without error, but {reference} raised {type(error).__name__}: {error} ({_where(error)})"
        ) from error
    if not isinstance(task, Task):
        raise InvalidInput(f"TASK must return a hasten.Task, but {reference} returned a {type(task).__name__}.")
    return task


def _where(error: Exception) -> str:
    """File and line of the user's code that raised, or that called the library which raised."""
    frames = traceback.extract_tb(error.__traceback__)
    libraries = ("<", sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))
    frame = [*frames[-1:], *(f for f in frames if not f.filename.startswith(libraries))][-1]
    return f"{frame.filename}, line {frame.lineno}"


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InvalidInput(f"TASK must be a Python file that exists, but {path} does not. `hasten init` writes one.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # The file may import its neighbours, as it could when run as a script.
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _import_module(name: str, reference: str) -> ModuleType:
    if not name or ":" not in reference:
        raise InvalidInput(f"TASK must be `path/to/file.py` or `package.module:function`, but got {reference!r}.")
    sys.path.insert(0, str(Path.cwd()))
    return importlib.import_module(name)
