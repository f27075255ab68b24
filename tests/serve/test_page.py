"""TLS, and the status page in a real browser."""

import contextlib
import http.client
import json
import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificate")
def test_tls(start: Callable[..., contextlib.AbstractContextManager[Any]], artifact: Path, tmp_path: Path) -> None:
    triton = pytest.importorskip("tritonclient.grpc")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    with start(str(artifact), "--certificate", str(certificate), "--key", str(key)) as server:
        assert server.http.startswith("https://")
        context = ssl.create_default_context(cafile=str(certificate))
        connection = http.client.HTTPSConnection(server.address, context=context, timeout=20)
        connection.request("GET", "/v2")
        assert json.loads(connection.getresponse().read())["name"] == "hasten"
        connection.close()
        client = triton.InferenceServerClient(server.grpc, ssl=True, root_certificates=str(certificate))
        assert client.is_server_ready()
        client.close()


def _seen(address: str) -> str:
    """What a browser shows after some seconds, as HTML."""
    assert CHROMIUM is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--virtual-time-budget=5000"]
    return subprocess.run([CHROMIUM, *options, address], capture_output=True, text=True, timeout=90, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_status_page_asks_for_the_key(
    start: Callable[..., contextlib.AbstractContextManager[Any]], artifact: Path, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("secret #1")
    with start(str(artifact), "--api-key-file", str(tmp_path / "key")) as server:
        without = _seen(server.http + "/")
        assert "needs the API key" in without
        assert '<form id="ask">' in without
        assert "tiny version 1" not in without
        with_it = _seen(server.http + "/#secret%20%231")
        assert "tiny version 1" in with_it
        assert '<form id="ask" hidden="">' in with_it


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_status_page_draws_models_and_devices(server: Any) -> None:
    dom = _seen(server.http + "/")
    assert "tiny version 1" in dom
    assert "other version 3" in dom
    assert "onnxruntime" in dom
    assert '<small id="state">live</small>' in dom
