"""The gRPC side of the Open Inference Protocol v2, on grpc.aio, over the same models as the HTTP side."""

import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import numpy as np

from hasten import __version__
from hasten.engine.work import DeviceFailed
from hasten.errors import InvalidInput
from hasten.serve.app import EXTENSIONS
from hasten.serve.messages import MESSAGES
from hasten.serve.models import Overloaded, TooSlow
from hasten.serve.regions import Regions
from hasten.serve.repository import Repository, UnknownModel
from hasten.serve.tensors import Wanted, check_distinct, chosen, datatype_of, from_bytes, from_values

_SERVICE = "inference.GRPCInferenceService"
_LOG = logging.getLogger("hasten.serve")
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
# The values of Triton's DataType enumeration.
_TYPES = {"BOOL": 1, "UINT8": 2, "INT8": 6, "INT16": 7, "INT32": 8, "INT64": 9, "FP16": 10, "FP32": 11, "FP64": 12}

Handler = Callable[[Any], Awaitable[Any]]


class Service:
    """The protocol's calls; every method takes a request message and returns a response message."""

    def __init__(self, repository: Repository, regions: Regions, api_key: str | None = None) -> None:
        self._repository, self._regions = repository, regions
        self._key = api_key.encode() if api_key else None

    def handlers(self) -> Any:
        """For `grpc.aio.Server.add_generic_rpc_handlers`."""
        calls: dict[str, Handler] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "ModelInfer": self._model_infer,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
            "SystemSharedMemoryRegister": self._register,
            "SystemSharedMemoryUnregister": self._unregister,
            "SystemSharedMemoryStatus": self._status,
        }
        return grpc.method_handlers_generic_handler(
            _SERVICE,
            {
                name: grpc.unary_unary_rpc_method_handler(
                    self._guarded(name, call),
                    MESSAGES[f"{name}Request"].FromString,
                    MESSAGES[f"{name}Response"].SerializeToString,
                )
                for name, call in calls.items()
            },
        )

    def _guarded(self, name: str, call: Handler) -> Callable[[Any, Any], Awaitable[Any]]:
        open_to_all = name in ("ServerLive", "ServerReady")

        async def handle(request: Any, context: Any) -> Any:
            if self._key is not None and not open_to_all and not self._authorised(context):
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, "The request must carry the API key.")
            try:
                return await call(request)
            except Exception as error:
                code, message = _failure(error)
            if code is grpc.StatusCode.UNAVAILABLE:
                context.set_trailing_metadata((("retry-after", message[0]),))
            return await context.abort(code, message[1])

        return handle

    def _authorised(self, context: Any) -> bool:
        assert self._key is not None
        metadata = dict(context.invocation_metadata() or ())
        given = metadata.get("x-api-key") or str(metadata.get("authorization", "")).removeprefix("Bearer ")
        return hmac.compare_digest(str(given).encode(), self._key)

    async def _live(self, request: Any) -> Any:
        return MESSAGES["ServerLiveResponse"](live=True)

    async def _ready(self, request: Any) -> Any:
        return MESSAGES["ServerReadyResponse"](ready=self._repository.ready)

    async def _model_ready(self, request: Any) -> Any:
        try:
            self._repository.get(request.name, request.version)
        except UnknownModel:
            return MESSAGES["ModelReadyResponse"](ready=False)
        return MESSAGES["ModelReadyResponse"](ready=True)

    async def _server_metadata(self, request: Any) -> Any:
        return MESSAGES["ServerMetadataResponse"](name="hasten", version=__version__, extensions=EXTENSIONS)

    async def _model_metadata(self, request: Any) -> Any:
        model = self._repository.get(request.name, request.version)
        return MESSAGES["ModelMetadataResponse"](**model.metadata(self._repository.versions(request.name)))

    async def _model_config(self, request: Any) -> Any:
        config = self._repository.get(request.name, request.version).config()
        del config["dynamic_batching"]
        for kind in ("input", "output"):
            for tensor in config[kind]:
                tensor["data_type"] = _TYPES[tensor["data_type"].removeprefix("TYPE_")]
        return MESSAGES["ModelConfigResponse"](config=config)

    async def _model_statistics(self, request: Any) -> Any:
        models = [self._repository.get(request.name, request.version)] if request.name else self._repository.models()
        found = [model.triton_statistics() for model in models]
        for entry in found:
            del entry["batch_stats"]
        return MESSAGES["ModelStatisticsResponse"](model_stats=found)

    async def _model_infer(self, request: Any) -> Any:
        model = self._repository.get(request.model_name, request.model_version)
        with model.refusals:
            wanted = [_wanted(x) for x in request.outputs]
            check_distinct("outputs", [x.name for x in wanted])
            inputs = self._inputs(request)
        outputs = await model.infer(inputs)
        response = MESSAGES["ModelInferResponse"](
            model_name=request.model_name, model_version=model.entry.version, id=request.id
        )
        picked = chosen(outputs, wanted, True)
        for x, y in picked:
            tensor = response.outputs.add(name=x.name, datatype=datatype_of(y.dtype), shape=y.shape)
            if x.region is not None:
                self._regions.write(x.region, y)
                tensor.parameters["shared_memory_region"].string_param = x.region["shared_memory_region"]
                response.raw_output_contents.append(b"")
            else:
                response.raw_output_contents.append(np.ascontiguousarray(y).tobytes())
        return response

    def _inputs(self, request: Any) -> dict[str, np.ndarray]:
        check_distinct("inputs", [x.name for x in request.inputs])
        raw = iter(request.raw_input_contents)
        inputs = {}
        for x in request.inputs:
            parameters, shape = _plain(x.parameters), list(x.shape)
            if "shared_memory_region" in parameters:
                inputs[x.name] = from_bytes(x.name, x.datatype, shape, self._regions.read(parameters))
            elif request.raw_input_contents:
                data = next(raw, None)
                if data is None:
                    raise InvalidInput(f"`raw_input_contents` must hold every input, but has none for {x.name!r:.100}.")
                inputs[x.name] = from_bytes(x.name, x.datatype, shape, data)
            else:
                values = getattr(x.contents, _CONTENTS.get(x.datatype, "bytes_contents"))
                inputs[x.name] = from_values(x.name, x.datatype, shape, list(values))
        return inputs

    async def _repository_index(self, request: Any) -> Any:
        return MESSAGES["RepositoryIndexResponse"](models=self._repository.index())

    async def _load(self, request: Any) -> Any:
        await self._repository.load(request.model_name)
        return MESSAGES["RepositoryModelLoadResponse"]()

    async def _unload(self, request: Any) -> Any:
        await self._repository.unload(request.model_name)
        return MESSAGES["RepositoryModelUnloadResponse"]()

    async def _register(self, request: Any) -> Any:
        self._regions.register(request.name, request.key, request.offset, request.byte_size)
        return MESSAGES["SystemSharedMemoryRegisterResponse"]()

    async def _unregister(self, request: Any) -> Any:
        self._regions.unregister(request.name or None)
        return MESSAGES["SystemSharedMemoryUnregisterResponse"]()

    async def _status(self, request: Any) -> Any:
        response = MESSAGES["SystemSharedMemoryStatusResponse"]()
        for region in self._regions.status(request.name or None):
            response.regions[region["name"]].MergeFrom(MESSAGES["RegionStatus"](**region))
        return response


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: getattr(value, value.WhichOneof("parameter_choice") or "string_param") for key, value in parameters.items()
    }


def _wanted(output: Any) -> Wanted:
    parameters = _plain(output.parameters)
    if parameters.get("classification"):
        raise InvalidInput(f"The classification extension is not served (output {output.name!r:.80}). Sort the output.")
    return Wanted(output.name, True, parameters if "shared_memory_region" in parameters else None)


def _failure(error: Exception) -> tuple[grpc.StatusCode, tuple[str, str]]:
    """The status, and (seconds to wait, message)."""
    if isinstance(error, Overloaded):
        return grpc.StatusCode.UNAVAILABLE, (str(error.retry_after_s), str(error))
    if isinstance(error, DeviceFailed):
        return grpc.StatusCode.UNAVAILABLE, ("1", str(error))
    if isinstance(error, UnknownModel):
        return grpc.StatusCode.NOT_FOUND, ("", str(error))
    if isinstance(error, InvalidInput):
        return grpc.StatusCode.INVALID_ARGUMENT, ("", str(error))
    if isinstance(error, TooSlow):
        return grpc.StatusCode.DEADLINE_EXCEEDED, ("", str(error))
    _LOG.error("request failed", exc_info=error)
    return grpc.StatusCode.INTERNAL, ("", "The model failed; the server's log says why.")


async def start_grpc(service: Service, address: str, body_bytes: int, tls: tuple[bytes, bytes] | None = None) -> Any:
    """Start a server on `host:port`; `tls` is (key, certificate chain) in PEM. Returns (server, port)."""
    options = [
        ("grpc.max_receive_message_length", body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((service.handlers(),))
    if tls is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, grpc.ssl_server_credentials([tls]))
    await server.start()
    return server, port
