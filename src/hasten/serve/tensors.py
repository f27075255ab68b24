"""Tensors of the Open Inference Protocol v2: data types, JSON and the binary tensor extension.

Protocol: https://github.com/kserve/open-inference-protocol; binary data: Triton's `protocol/extension_binary_data.md`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from hasten.errors import InvalidInput
from hasten.serve.regions import Regions

DATATYPES = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_KEPT_BYTES = 4096
_DIMENSIONS, _ELEMENTS = 32, 2**40


@dataclass(frozen=True)
class Wanted:
    """An output that a request asks for."""

    name: str
    binary: bool
    region: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class InferRequest:
    """A decoded request: arrays by input name, and the outputs it wants (empty: all, `binary` or not)."""

    id: str
    inputs: dict[str, np.ndarray]
    wanted: tuple[Wanted, ...]
    binary: bool


def datatype_of(dtype: Any) -> str:
    """The protocol's name of a numpy dtype."""
    return _NAMES[np.dtype(dtype)]


def from_bytes(name: str, datatype: str, shape: Sequence[int], data: memoryview | bytes) -> np.ndarray:
    """A view of little-endian raw bytes as an array; raises `InvalidInput` if they do not fit."""
    dtype, _ = _sized(name, datatype, shape, len(data))
    return _true(np.frombuffer(data, dtype).reshape(shape))


def _true(array: np.ndarray) -> np.ndarray:
    """The array, with every byte of a boolean one 0 or 1: kernels count and index by them."""
    return array if array.dtype != np.bool_ else array.view(np.uint8) != 0


def _sized(name: str, datatype: str, shape: Sequence[int], given: int) -> tuple[np.dtype, int]:
    """The dtype and the number of values; raises `InvalidInput` unless they take `given` bytes."""
    dtype = _dtype(name, datatype)
    _check_shape(name, shape)
    count = math.prod(shape)
    if given != count * dtype.itemsize:
        raise InvalidInput(
            f"Input {name!r:.100} of shape {list(shape)!s:.200} and {datatype} must have {count * dtype.itemsize} "
            f"bytes, but has {given}."
        )
    return dtype, count


def from_values(name: str, datatype: str, shape: Sequence[int], values: Any) -> np.ndarray:
    """An array from JSON numbers, flat or nested; raises `InvalidInput` if they do not fit."""
    dtype = _dtype(name, datatype)
    _check_shape(name, shape)
    try:
        array = np.array(values, dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidInput(f"Input {name!r:.100} must hold {datatype} numbers, but: {error!s:.200}") from error
    if array.size != math.prod(shape):
        raise InvalidInput(
            f"Input {name!r:.100} of shape {list(shape)!s:.200} must have {math.prod(shape)} values, "
            f"but has {array.size}."
        )
    return array.reshape(shape)


def _dtype(name: str, datatype: str) -> np.dtype:
    if datatype not in DATATYPES:
        raise InvalidInput(
            f"`datatype` of input {name!r:.100} must be one of {', '.join(DATATYPES)}, but got {datatype!r:.100}."
        )
    return DATATYPES[datatype]


def _check_shape(name: str, shape: Any) -> None:
    if not isinstance(shape, (list, tuple)) or not all(type(x) is int and x >= 0 for x in shape):
        raise InvalidInput(f"`shape` of input {name!r:.100} must be a list of sizes, but got {shape!r:.100}.")
    # Also of an array without values numpy wants to know how large it would be without its zeros.
    if len(shape) > _DIMENSIONS or math.prod(x or 1 for x in shape) > _ELEMENTS:
        raise InvalidInput(
            f"`shape` of input {name!r:.100} must have at most {_DIMENSIONS} sizes and {_ELEMENTS} values, "
            f"but got {shape!r:.100}."
        )


@dataclass(frozen=True)
class _Tensor:
    """An input as the JSON of a request describes it; `binary` is (dtype, values, bytes) where the values follow it."""

    name: str
    datatype: str
    shape: list[int]
    parameters: Mapping[str, Any]
    values: Any
    binary: tuple[np.dtype, int, int] | None


@dataclass(frozen=True)
class _Head:
    """What the JSON of a request says."""

    id: str
    tensors: tuple[_Tensor, ...]
    wanted: tuple[Wanted, ...]
    binary: bool


def decode_request(body: bytes, json_size: int | None, regions: Regions) -> InferRequest:
    """Decode the body of a REST request.

    Args:
        body: JSON, followed by binary tensors if `json_size` says where the JSON ends.
        json_size: The header `Inference-Header-Content-Length`.
        regions: Looks shared memory up.

    Raises:
        InvalidInput: Not a request of the protocol.
    """
    size = len(body) if json_size is None else json_size
    if not 0 < size <= len(body):
        raise InvalidInput(f"Inference-Header-Content-Length must be between 1 and {len(body)}, but is {size}.")
    # A client that sends its tensors in binary sends the same JSON again and again.
    head = _same_head(body[:size]) if size < len(body) and size <= _KEPT_BYTES else _head(body[:size])
    at = size
    inputs: dict[str, np.ndarray] = {}
    for x in head.tensors:
        if "shared_memory_region" in x.parameters:
            inputs[x.name] = from_bytes(x.name, x.datatype, x.shape, regions.read(x.parameters))
        elif x.binary is not None:
            dtype, count, length = x.binary
            if length > len(body) - at:
                raise InvalidInput(f"`binary_data_size` of {x.name!r:.100} must fit the body, but is {length}.")
            flat = np.frombuffer(body, dtype, count, at) if count else np.empty(0, dtype)
            inputs[x.name] = _true(flat.reshape(x.shape))
            at += length
        else:
            inputs[x.name] = from_values(x.name, x.datatype, x.shape, x.values)
    if at != len(body):
        raise InvalidInput(f"The body must end with the last tensor, but {len(body) - at} bytes follow it.")
    return InferRequest(head.id, inputs, head.wanted, head.binary)


def _head(data: bytes) -> _Head:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"The request must be JSON, but: {error}") from error
    listed = document.get("inputs") if isinstance(document, dict) else None
    if not isinstance(listed, list) or not all(_is_tensor(x) for x in listed):
        raise InvalidInput("The request must have `inputs`, each with `name`, `datatype` and `shape`.")
    check_distinct("inputs", [x["name"] for x in listed])
    parameters = _mapping(document, "parameters")
    binary = parameters.get("binary_data_output") is True
    identity = document.get("id", "")
    return _Head(
        identity if isinstance(identity, str) else "",
        tuple(map(_tensor, listed)),
        _wanted(document, binary),
        binary,
    )


_same_head = lru_cache(maxsize=256)(_head)


def _tensor(x: Mapping[str, Any]) -> _Tensor:
    parameters = _mapping(x, "parameters")
    name, datatype, shape, length = x["name"], x["datatype"], x["shape"], parameters.get("binary_data_size")
    binary = None
    if length is not None and "shared_memory_region" not in parameters:
        if type(length) is not int or length < 0:
            raise InvalidInput(f"`binary_data_size` of {name!r:.100} must fit the body, but is {length!r:.50}.")
        dtype, count = _sized(name, datatype, shape, length)
        binary = (dtype, count, length)
    return _Tensor(name, datatype, shape, parameters, x.get("data"), binary)


def check_distinct(kind: str, names: Sequence[str]) -> None:
    """Refuse a request that names a tensor twice: a short one could ask for an output a million times."""
    if len(set(names)) < len(names):
        raise InvalidInput(f"`{kind}` must name every tensor once, but {len(names) - len(set(names))} are repeated.")


def _is_tensor(x: Any) -> bool:
    return (
        isinstance(x, dict) and isinstance(x.get("name"), str) and isinstance(x.get("datatype"), str) and "shape" in x
    )


def _mapping(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key)
    return value if isinstance(value, dict) else {}


def _wanted(document: Mapping[str, Any], binary: bool) -> tuple[Wanted, ...]:
    listed = document.get("outputs") or []
    if not isinstance(listed, list) or not all(isinstance(x, dict) and isinstance(x.get("name"), str) for x in listed):
        raise InvalidInput("`outputs` must be a list of mappings with `name`.")
    check_distinct("outputs", [x["name"] for x in listed])
    wanted = []
    for x in listed:
        parameters = _mapping(x, "parameters")
        if parameters.get("classification"):
            raise InvalidInput(
                f"The classification extension is not served (output {x['name']!r:.100}). Sort the output."
            )
        region = parameters if "shared_memory_region" in parameters else None
        wanted.append(Wanted(x["name"], parameters.get("binary_data", binary) is True, region))
    return tuple(wanted)


def chosen(
    outputs: Mapping[str, np.ndarray], wanted: Sequence[Wanted], binary: bool
) -> list[tuple[Wanted, np.ndarray]]:
    """The outputs that a request wants; raises `InvalidInput` for a name that does not exist."""
    if not wanted:
        return [(Wanted(name, binary), y) for name, y in outputs.items()]
    for x in wanted:
        if x.name not in outputs:
            raise InvalidInput(f"`outputs` must be among {', '.join(outputs)}, but has {x.name!r:.100}.")
    return [(x, outputs[x.name]) for x in wanted]


def encode_response(
    request: InferRequest, model: str, version: str, outputs: Mapping[str, np.ndarray], regions: Regions
) -> tuple[bytes, int | None]:
    """The body of an answer, and the size of its JSON if binary tensors follow it."""
    listed: list[str] = []
    blobs: list[bytes] = []
    for x, y in chosen(outputs, request.wanted, request.binary):
        if x.region is None and x.binary:
            blobs.append(y.tobytes())
            listed.append(_binary_entry(x.name, y.dtype, y.shape))
        else:
            listed.append(_entry(x, y, regions))
    identity = f',"id":{json.dumps(request.id)}' if request.id else ""
    named = f'"model_name":{json.dumps(model)},"model_version":{json.dumps(version)}'
    head = f'{{{named},"outputs":[{",".join(listed)}]{identity}}}'.encode()
    return (b"".join([head, *blobs]), len(head)) if blobs else (head, None)


@lru_cache(maxsize=256)
def _binary_entry(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> str:
    size = math.prod(shape) * dtype.itemsize
    return _json(_about(name, dtype, shape) | {"parameters": {"binary_data_size": size}})


def _entry(x: Wanted, y: np.ndarray, regions: Regions) -> str:
    """An output in shared memory, or one whose values stand in the JSON."""
    about = _about(x.name, y.dtype, y.shape)
    if x.region is None:
        return _json(about | {"data": y.ravel().tolist()})
    regions.write(x.region, y)
    keys = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")
    return _json(about | {"parameters": {key: x.region[key] for key in keys if key in x.region}})


def _about(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype_of(dtype), "shape": list(shape)}


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
