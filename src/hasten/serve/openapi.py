"""The OpenAPI 3.1 description of a server, with its models' names in it."""

from typing import Any

from hasten import __version__
from hasten.serve.models import Repository

_TENSOR = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string"},
        "datatype": {"type": "string", "examples": ["FP32"]},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "data": {"type": "array", "description": "Numbers, flat or nested; absent for binary tensors."},
        "parameters": {"type": "object"},
    },
}
_ERROR = {
    "description": "The rule that was broken.",
    "content": {"application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}},
}


def document(repository: Repository) -> dict[str, Any]:
    """The description as plain values for JSON."""
    names = sorted({entry.name for entry in repository.entries})
    model = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "enum": names}}
    version = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}
    infer = {"post": _infer()}
    paths: dict[str, Any] = {
        "/v2/health/live": {"get": _plain("The process runs.")},
        "/v2/health/ready": {"get": _plain("Requests are taken.")},
        "/v2": {"get": _plain("Name, version and extensions of the server.")},
        "/v2/repository/index": {"post": _plain("All models and their states.")},
        "/v2/models/{model}": {"parameters": [model], "get": _plain("Inputs and outputs of a model.")},
        "/v2/models/{model}/ready": {"parameters": [model], "get": _plain("Whether a model is loaded.")},
        "/v2/models/{model}/config": {"parameters": [model], "get": _plain("Configuration of a model.")},
        "/v2/models/{model}/stats": {"parameters": [model], "get": _plain("Counters of a model.")},
        "/v2/models/{model}/infer": {"parameters": [model], **infer},
        "/v2/models/{model}/versions/{version}/infer": {"parameters": [model, version], **infer},
        "/v2/repository/models/{model}/load": {"parameters": [model], "post": _plain("Load a model again.")},
        "/v2/repository/models/{model}/unload": {"parameters": [model], "post": _plain("Take a model away.")},
        "/metrics": {"get": _plain("Prometheus metrics.")},
    }
    return {"openapi": "3.1.0", "info": {"title": "hasten", "version": __version__}, "paths": paths}


def _plain(summary: str) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": {"description": summary}}}


def _infer() -> dict[str, Any]:
    tensors = {"type": "array", "items": _TENSOR}
    request = {"type": "object", "required": ["inputs"], "properties": {"id": {"type": "string"}, "inputs": tensors}}
    answer = {"type": "object", "properties": {"model_name": {"type": "string"}, "outputs": tensors}}
    return {
        "summary": "Run a model.",
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": {
            "200": {"description": "Outputs.", "content": {"application/json": {"schema": answer}}},
            "400": _ERROR,
            "404": _ERROR,
            "413": _ERROR,
            "503": {**_ERROR, "headers": {"Retry-After": {"schema": {"type": "integer"}}}},
            "504": _ERROR,
        },
    }
