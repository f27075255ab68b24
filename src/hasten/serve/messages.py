"""The messages of the Open Inference Protocol v2 over gRPC, built at run time from one table of fields and numbers.

A table instead of generated code: nothing to regenerate for each protobuf release. The messages live in a descriptor
pool of their own, so that a client library which registers the same names can be used in the same process.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "inference"
_SCALARS = {
    "string": 9, "bool": 8, "int32": 5, "int64": 3, "uint32": 13, "uint64": 4, "float": 2, "double": 1, "bytes": 12,
    "enum": 5,  # on the wire an enum is an int32
}  # fmt: skip

# Message -> "name number type"; `*` repeats, `|` belongs to the message's one-of, a capital letter is a message,
# `map` is a map from string to the message behind it.
_MESSAGES = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live 1 bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready 1 bool",
    "ModelReadyRequest": "name 1 string, version 2 string",
    "ModelReadyResponse": "ready 1 bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name 1 string, version 2 string, extensions 3 string*",
    "ModelMetadataRequest": "name 1 string, version 2 string",
    "TensorMetadata": "name 1 string, datatype 2 string, shape 3 int64*",
    "ModelMetadataResponse": "name 1 string, versions 2 string*, platform 3 string, inputs 4 TensorMetadata*, "
    "outputs 5 TensorMetadata*",
    "InferParameter": "bool_param 1 bool|, int64_param 2 int64|, string_param 3 string|, double_param 4 double|, "
    "uint64_param 5 uint64|",
    "InferTensorContents": "bool_contents 1 bool*, int_contents 2 int32*, int64_contents 3 int64*, "
    "uint_contents 4 uint32*, uint64_contents 5 uint64*, fp32_contents 6 float*, fp64_contents 7 double*, "
    "bytes_contents 8 bytes*",
    "InferInputTensor": "name 1 string, datatype 2 string, shape 3 int64*, parameters 4 map InferParameter, "
    "contents 5 InferTensorContents",
    "InferRequestedOutputTensor": "name 1 string, parameters 2 map InferParameter",
    "ModelInferRequest": "model_name 1 string, model_version 2 string, id 3 string, parameters 4 map InferParameter, "
    "inputs 5 InferInputTensor*, outputs 6 InferRequestedOutputTensor*, raw_input_contents 7 bytes*",
    "InferOutputTensor": "name 1 string, datatype 2 string, shape 3 int64*, parameters 4 map InferParameter, "
    "contents 5 InferTensorContents",
    "ModelInferResponse": "model_name 1 string, model_version 2 string, id 3 string, parameters 4 map InferParameter, "
    "outputs 5 InferOutputTensor*, raw_output_contents 6 bytes*",
    "ModelConfigRequest": "name 1 string, version 2 string",
    "ModelInput": "name 1 string, data_type 2 enum, dims 4 int64*",
    "ModelOutput": "name 1 string, data_type 2 enum, dims 3 int64*",
    "ModelConfig": "name 1 string, platform 2 string, max_batch_size 4 int32, input 5 ModelInput*, "
    "output 6 ModelOutput*, backend 17 string",
    "ModelConfigResponse": "config 1 ModelConfig",
    "ModelStatisticsRequest": "name 1 string, version 2 string",
    "StatisticDuration": "count 1 uint64, ns 2 uint64",
    "InferStatistics": "success 1 StatisticDuration, fail 2 StatisticDuration, queue 3 StatisticDuration, "
    "compute_input 4 StatisticDuration, compute_infer 5 StatisticDuration, compute_output 6 StatisticDuration",
    "ModelStatistics": "name 1 string, version 2 string, last_inference 3 uint64, inference_count 4 uint64, "
    "execution_count 5 uint64, inference_stats 6 InferStatistics",
    "ModelStatisticsResponse": "model_stats 1 ModelStatistics*",
    "RepositoryIndexRequest": "repository_name 1 string, ready 2 bool",
    "ModelIndex": "name 1 string, version 2 string, state 3 string, reason 4 string",
    "RepositoryIndexResponse": "models 1 ModelIndex*",
    "RepositoryModelLoadRequest": "repository_name 1 string, model_name 2 string",
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": "repository_name 1 string, model_name 2 string",
    "RepositoryModelUnloadResponse": "",
    "SystemSharedMemoryRegisterRequest": "name 1 string, key 2 string, offset 3 uint64, byte_size 4 uint64",
    "SystemSharedMemoryRegisterResponse": "",
    "SystemSharedMemoryUnregisterRequest": "name 1 string",
    "SystemSharedMemoryUnregisterResponse": "",
    "SystemSharedMemoryStatusRequest": "name 1 string",
    "RegionStatus": "name 1 string, key 2 string, offset 3 uint64, byte_size 4 uint64",
    "SystemSharedMemoryStatusResponse": "regions 1 map RegionStatus",
}


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="hasten/inference.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for text in filter(None, fields.split(", ")):
            _add(message, text)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES
    }


def _add(message: Any, text: str) -> None:
    name, number, kind, *mapped = text.split()
    field = message.field.add(name=name, number=int(number), label=3 if kind.endswith("*") or mapped else 1)
    if mapped:
        entry = message.nested_type.add(name="".join(part.title() for part in name.split("_")) + "Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, label=1, type=9)
        entry.field.add(name="value", number=2, label=1, type=11, type_name=f".{_PACKAGE}.{mapped[0]}")
        field.type, field.type_name = 11, f".{_PACKAGE}.{message.name}.{entry.name}"
        return
    if kind.endswith("|"):
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    kind = kind.rstrip("*|")
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = 11, f".{_PACKAGE}.{kind}"


MESSAGES = _build()
