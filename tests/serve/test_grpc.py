"""The gRPC side against a real server, by tritonclient unmodified."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hasten

triton = pytest.importorskip("tritonclient.grpc")


@pytest.fixture
def client(server: Any) -> Any:
    made = triton.InferenceServerClient(server.grpc)
    yield made
    made.close()


@pytest.fixture(scope="module")
def name(artifact: Path) -> str:
    return str(hasten.Artifact(artifact).manifest["inputs"][0]["name"])


def test_about(client: Any, name: str) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert not client.is_model_ready("nothing")
    assert client.get_server_metadata().name == "hasten"
    metadata = client.get_model_metadata("tiny")
    assert (metadata.inputs[0].name, list(metadata.inputs[0].shape)) == (name, [-1, 4])
    config = client.get_model_config("tiny").config
    assert config.input[0].data_type == triton.model_config_pb2.TYPE_FP32
    assert list(config.output[0].dims) == [3]
    assert {model.name for model in client.get_model_repository_index().models} == {"tiny", "other"}


def test_infer(client: Any, artifact: Path, name: str) -> None:
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    given = triton.InferInput(name, list(x.shape), "FP32")
    given.set_data_from_numpy(x)
    for outputs in (None, [triton.InferRequestedOutput("output_0")]):
        result = client.infer("tiny", [given], outputs=outputs, request_id="9")
        assert np.allclose(result.as_numpy("output_0"), hasten.load(artifact)(x)[0], atol=1e-5)
        assert result.get_response().id == "9"
    assert client.get_inference_statistics("tiny").model_stats[0].inference_count >= 10
    assert len(client.get_inference_statistics().model_stats) == 2


def test_errors(client: Any, name: str) -> None:
    x = np.zeros((1, 5), np.float32)
    given = triton.InferInput(name, [1, 5], "FP32")
    given.set_data_from_numpy(x)
    caught: Any
    with pytest.raises(Exception, match="must have shape") as caught:
        client.infer("tiny", [given])
    assert "INVALID_ARGUMENT" in caught.value.status()
    with pytest.raises(Exception, match="model must be one of") as caught:
        client.infer("nothing", [given])
    assert "NOT_FOUND" in caught.value.status()


def test_shared_memory_and_reload(client: Any, artifact: Path, name: str) -> None:
    shm = pytest.importorskip("tritonclient.utils.shared_memory")
    x = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    region = shm.create_shared_memory_region("grpc", "/hasten-test-grpc", 1024)
    try:
        shm.set_shared_memory_region(region, [x])
        client.register_system_shared_memory("grpc", "/hasten-test-grpc", 1024)
        assert "grpc" in client.get_system_shared_memory_status().regions
        given = triton.InferInput(name, list(x.shape), "FP32")
        given.set_shared_memory("grpc", x.nbytes)
        output = triton.InferRequestedOutput("output_0")
        output.set_shared_memory("grpc", 36, offset=512)
        client.infer("tiny", [given], outputs=[output])
        found = shm.get_contents_as_numpy(region, np.float32, [3, 3], 512)
        assert np.allclose(found, hasten.load(artifact)(x)[0], atol=1e-5)
        client.unregister_system_shared_memory("grpc")
    finally:
        shm.destroy_shared_memory_region(region)
    client.load_model("tiny")
    assert client.is_model_ready("tiny")


def test_what_is_refused_is_counted_as_failed(client: Any, name: str) -> None:
    def failures() -> int:
        return int(client.get_inference_statistics("tiny").model_stats[0].inference_stats.fail.count)

    before = failures()
    given = triton.InferInput(name, [1, 4], "FP32")
    given.set_shared_memory("nowhere", 16)
    with pytest.raises(Exception, match="nowhere"):
        client.infer("tiny", [given])
    output = triton.InferRequestedOutput("output_0", class_count=2)
    given.set_data_from_numpy(np.zeros((1, 4), np.float32))
    with pytest.raises(Exception, match="classification"):
        client.infer("tiny", [given], outputs=[output])
    assert failures() == before + 2
