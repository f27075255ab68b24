"""Whatever a file or a request holds, its reader answers with `InvalidInput` or with a checked value, never otherwise.

`HASTEN_FUZZ=20000 pytest tests/hardening` searches longer; examples that failed are kept in `.hypothesis` and, once
understood, as `@example`.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hasten.artifact import Artifact, load
from hasten.errors import HastenError, InvalidInput
from hasten.graph.interpret import run
from hasten.graph.plan import Call, Plan, Value
from hasten.manifest import read_arrays, read_json, read_manifest
from hasten.recipe import Recipe
from hasten.report.data import run_data
from hasten.search.journal import Journal
from hasten.serve.regions import Regions
from hasten.serve.tensors import InferRequest, decode_request

EXAMPLES = int(os.environ.get("HASTEN_FUZZ", "150"))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
json_values = st.recursive(
    plain, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=12), x, max_size=4), max_leaves=12
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value inside a document is."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, x in inner for found in _paths(x, (*path, key)))]


def _replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _replaced(copy[path[0]], path[1:], new)
    return copy


def _changed(document: Any, data: st.DataObject) -> Any:
    """The document with one value inside it replaced."""
    return _replaced(document, data.draw(st.sampled_from(_paths(document))), data.draw(json_values))


@pytest.fixture
def folder(digits_artifact: Artifact, tmp_path: Path) -> Path:
    return digits_artifact.save(tmp_path / "copy.hasten").path


@fuzz
@given(data=st.data())
def test_a_changed_manifest_loads_nothing_else(folder: Path, data: st.DataObject) -> None:
    text = (folder / "manifest.json").read_text()
    try:
        (folder / "manifest.json").write_text(json.dumps(_changed(json.loads(text), data)))
        with contextlib.suppress(InvalidInput):
            manifest = read_manifest(folder)
            assert all(not Path(name).is_absolute() and ".." not in Path(name).parts for name in manifest["files"])
            load(folder)
    finally:
        (folder / "manifest.json").write_text(text)


@fuzz
@given(content=st.binary(max_size=400))
@example(content=b"\xff\xfe")
@example(content=b"[" * 100_000)
def test_any_bytes_are_json_or_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with contextlib.suppress(InvalidInput):
        read_json(tmp_path / "x.json")


@fuzz
@given(data=st.data())
def test_a_damaged_array_is_an_array_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    np.save(tmp_path / "x_0.npy", np.arange(12, dtype=np.float32).reshape(3, 4))
    content = bytearray((tmp_path / "x_0.npy").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "x_0.npy").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(InvalidInput):
        (array,) = read_arrays(tmp_path, "x", 1)
        assert array.nbytes <= len(content)


_RECIPE = (
    "steps:\n- prune_filters: {ratio: 0.5}\n- quantize: {placement: fuse_clamps}\ntarget: {onnxruntime: {threads: 2}}\n"
)


@fuzz
@given(data=st.data())
def test_a_damaged_recipe_is_a_recipe_or_refused(data: st.DataObject) -> None:
    at, length = data.draw(st.integers(0, len(_RECIPE))), data.draw(st.integers(0, 8))
    inserted = data.draw(
        st.text(max_size=12) | st.sampled_from(["&a ", "*a", "!!python/name:os.system ", "? ", "<<: "])
    )
    with contextlib.suppress(InvalidInput):
        assert isinstance(Recipe.from_yaml(_RECIPE[:at] + inserted + _RECIPE[at + length :]), Recipe)


def test_aliases_that_would_fill_the_memory_are_refused() -> None:
    levels = "\n".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]" for i in range(1, 12))
    with pytest.raises(InvalidInput, match="alias"):
        Recipe.from_yaml(f"x0: &x0 [1]\n{levels}\ntarget: x")


_REQUEST = {
    "id": "1",
    "inputs": [
        {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
        {"name": "y", "datatype": "INT64", "shape": [2], "data": [1, 2]},
        {"name": "z", "datatype": "UINT8", "shape": [1], "parameters": {"shared_memory_region": "r"}},
    ],
    "outputs": [{"name": "output_0", "parameters": {"binary_data": True}}],
    "parameters": {"binary_data_output": True},
}


@fuzz
@given(data=st.data())
def test_a_changed_request_is_read_or_refused(data: st.DataObject) -> None:
    head = json.dumps(_changed(_REQUEST, data)).encode()
    body = head + data.draw(st.binary(max_size=16))
    size = data.draw(st.just(len(head)) | st.none() | st.integers(-1, len(body) + 1))
    with contextlib.suppress(InvalidInput):
        request = decode_request(body, size, Regions(allowed=False))
        assert isinstance(request, InferRequest)
        assert sum(x.nbytes for x in request.inputs.values()) <= 16 * len(body)


@fuzz
@given(body=st.binary(max_size=200), size=st.none() | st.integers(-5, 300))
def test_any_bytes_are_a_request_or_refused(body: bytes, size: int | None) -> None:
    with contextlib.suppress(InvalidInput):
        decode_request(body, size, Regions(allowed=False))


_EVENT = {"event": "trial", "key": "a", "elapsed_s": 1.5, "number": 1, "recipe": {"target": "eager"}, "latency": None}
_BEGIN = {"event": "begin", "key": "", "elapsed_s": 0.0, "task": "t", "device": {}, "budget": {}, "seed": 0}


@fuzz
@given(data=st.data())
@example(data=None).via("a line that is JSON and no event")
def test_a_changed_journal_is_read_or_refused(tmp_path: Path, data: st.DataObject | None) -> None:
    path = tmp_path / "journal.jsonl"
    changed = [1] if data is None else _changed([_BEGIN, _EVENT], data)
    lines = changed if isinstance(changed, list) else [changed]
    text = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    path.write_bytes(text if data is None else text + data.draw(st.binary(max_size=12)))
    with contextlib.suppress(InvalidInput):
        run_data(tmp_path)
    with contextlib.suppress(InvalidInput):
        journal = Journal(path)
        journal.append("end", {})
        assert [e["event"] for e in Journal(path).read()] == [e["event"] for e in journal.read()]
        assert path.read_bytes().endswith(b"\n")


def _plan() -> Plan:
    arguments = {"input": {"node": "x"}, "weight": {"node": "w"}, "bias": None}
    calls = (
        Call("y", "aten.linear", arguments, "float32", (None, 3)),
        Call("z", "aten._to_copy", {"self": {"node": "y"}, "dtype": {"dtype": "float64"}}),
    )
    return Plan((Value("x", "float32", (None, 4)),), calls, ("z",), {"w": np.ones((3, 4), np.float32)})


@fuzz
@given(data=st.data())
def test_a_changed_plan_is_run_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    _plan().save(tmp_path)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(_changed(json.loads(path.read_text()), data)))
    with contextlib.suppress(HastenError):
        plan = Plan.load(tmp_path)
        # Of what it computes nothing is promised; that it ends in an answer or an exception is.
        with contextlib.suppress(Exception):
            run(plan, [np.ones((2, 4), np.float32)])


@fuzz
@given(data=st.data())
def test_damaged_constants_are_arrays_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    _plan().save(tmp_path)
    path = tmp_path / "constants.npz"
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(InvalidInput):
        assert sum(x.nbytes for x in Plan.load(tmp_path).constants.values()) <= len(content)
