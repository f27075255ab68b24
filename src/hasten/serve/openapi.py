"""The OpenAPI 3.1 description of a server, with its models' names in it, as JSON and as a page to read."""

import html
import json
from typing import Any

from hasten import __version__
from hasten.serve.repository import Repository

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
        "/v2/systemsharedmemory/status": {"get": _plain("Registered regions of shared memory.")},
        "/v2/systemsharedmemory/region/{region}/register": {
            "parameters": [_region()],
            "post": _plain("Map a region: JSON with key, offset and byte_size."),
        },
        "/v2/systemsharedmemory/region/{region}/unregister": {
            "parameters": [_region()],
            "post": _plain("Forget a region."),
        },
        "/metrics": {"get": _plain("Prometheus metrics.")},
        "/status.json": {"get": _plain("What the status page shows.")},
    }
    return {"openapi": "3.1.0", "info": {"title": "hasten", "version": __version__}, "paths": paths}


def page(described: dict[str, Any]) -> bytes:
    """The description as one HTML page without outside parts."""
    rows = []
    for path, item in described["paths"].items():
        for method in ("get", "post"):
            if method not in item:
                continue
            operation = item[method]
            codes = ", ".join(operation["responses"])
            rows.append(
                f"<tr><td>{method.upper()}</td><td><code>{html.escape(path)}</code></td>"
                f"<td>{html.escape(operation['summary'])}</td><td>{codes}</td></tr>"
            )
    example = json.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2.0, 3.0, 4.0]}]}, indent=1
    )
    title = html.escape(described["info"]["title"])
    text = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}: API</title>
<style>:root {{ color-scheme: light dark; }} body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto;
max-width: 62rem; padding: 0 1rem; }} table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #8884; }}</style></head><body>
<h1>{title} {html.escape(described["info"]["version"])}</h1>
<p>Open Inference Protocol v2. <a href="openapi.json">openapi.json</a> has the same for machines;
<code>GET /v2/models/MODEL</code> says what a model takes.</p>
<table><tr><th>method</th><th>path</th><th>what</th><th>answers</th></tr>{"".join(rows)}</table>
<p>Body of an inference request:</p><pre>{html.escape(example)}</pre></body></html>
"""
    return text.encode()


def _region() -> dict[str, Any]:
    return {"name": "region", "in": "path", "required": True, "schema": {"type": "string"}}


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
