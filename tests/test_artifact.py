"""What ships: complete or absent, unchanged or refused, runnable without torch."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hasten
from hasten.artifact import Artifact, load, verify
from hasten.errors import InvalidInput
from hasten.recipe import Recipe, name_of


@pytest.fixture
def copy(digits_artifact: Artifact, tmp_path: Path) -> Path:
    return digits_artifact.save(tmp_path / "copy.hasten").path


def test_a_loaded_program_gives_the_model_s_numbers(digits_task: hasten.Task, digits_artifact: Artifact) -> None:
    program = hasten.load(digits_artifact.path)
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        np.testing.assert_allclose(program(x)[0], digits_task.model(x).numpy(), atol=1e-4)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_it_runs_where_torch_is_forbidden(digits_task: hasten.Task, tmp_path: Path, target: str) -> None:
    graph = hasten.capture(digits_task.model, digits_task.example)
    made = hasten.compile(graph, digits_task, target, tmp_path / "x.hasten")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy, hasten\n"
        f"y = hasten.load({str(made.path)!r})(numpy.zeros((2, 1, 8, 8), 'float32'))[0]\n"
        "print(y.shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(2, 10)"


def test_verify_reruns_what_was_stored(digits_artifact: Artifact) -> None:
    found = verify(digits_artifact.path)
    assert found.deviation < 1e-5
    assert found.files == len(digits_artifact.manifest["files"])


def test_the_artifact_tells_how_it_was_made(digits_artifact: Artifact) -> None:
    assert digits_artifact.manifest["target"]["name"] == "onnxruntime"
    assert digits_artifact.manifest["inputs"][0]["shape"] == [None, 1, 8, 8]
    assert digits_artifact.certificate is None
    assert "onnxruntime" in (digits_artifact.path / "recipe.yaml").read_text()


def _flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx").write_bytes(data)


def _edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return tamper


def _link(folder: Path) -> None:
    (folder / "recipe.yaml").unlink()
    (folder / "recipe.yaml").symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (_flip_a_byte, "'model.onnx' has another SHA-256"),
        (lambda f: (f / "model.onnx").unlink(), "'model.onnx' is missing"),
        (lambda f: (f / "extra.so").write_bytes(b""), "also has 'extra.so'"),
        (_link, "must hold no links"),
        (lambda f: (f / "manifest.json").unlink(), "has none"),
        (lambda f: (f / "manifest.json").write_text("{"), "must be valid JSON"),
        (lambda f: (f / "manifest.json").write_text("[" * 100_000), "must be valid JSON"),
        (_edit(lambda m: m.update(schema=99)), "must have schema 1, but has 99"),
        (_edit(lambda m: m.pop("files")), "It was changed"),
        (_edit(lambda m: m.update(files={"../../etc/passwd": "0"})), "must list files inside the folder"),
        (_edit(lambda m: m.update(inputs=[{"name": "x", "dtype": "object", "shape": []}])), "It was changed"),
        (_edit(lambda m: m["target"].update(name="os")), "target must be one of"),
        (_edit(lambda m: m["target"]["options"].update(evil=1)), "option of onnxruntime must be one of"),
    ],
)
def test_a_changed_artifact_is_refused(tamper: Callable[[Path], object], message: str, copy: Path) -> None:
    load(copy)
    tamper(copy)
    with pytest.raises(InvalidInput, match=message):
        load(copy)


def test_verify_refuses_a_program_that_computes_something_else(copy: Path) -> None:
    stored = np.load(copy / "check_output_0.npy")
    np.save(copy / "check_output_0.npy", stored[::-1])
    import hashlib

    digest = hashlib.sha256((copy / "check_output_0.npy").read_bytes()).hexdigest()
    _edit(lambda m: m["files"].update({"check_output_0.npy": digest}))(copy)
    with pytest.raises(InvalidInput, match="must reproduce its stored outputs"):
        verify(copy)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((), "takes 1 inputs .* but got 0"),
        ((np.zeros((1, 1, 8, 8)),), "must have dtype float32, but got float64"),
        ((np.zeros((1, 1, 8, 9), np.float32),), r"must have shape \[None, 1, 8, 8\]"),
    ],
)
def test_wrong_inputs_are_refused(digits_artifact: Artifact, inputs: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        load(digits_artifact.path)(*inputs)


def test_nothing_is_overwritten_and_no_half_artifact_is_left(digits_artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="must not exist yet"):
        digits_artifact.save(digits_artifact.path)
    broken = tmp_path / "broken"
    shutil.copytree(digits_artifact.path, broken)
    (broken / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InvalidInput, match="must hold no links"):
        Artifact(broken).save(tmp_path / "out.hasten")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]


def _inductor_copy(task: hasten.Task, folder: Path) -> Path:
    graph = hasten.capture(task.model, task.example)
    return hasten.compile(graph, task, "inductor", folder).path


def test_machine_code_runs_only_if_it_is_own_or_trusted(
    digits_task: hasten.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "me"))
    path = _inductor_copy(digits_task, tmp_path / "x.hasten")
    load(path)
    assert (tmp_path / "me" / "hasten" / "seal.key").stat().st_mode & 0o077 == 0
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["made_on"] = {}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InvalidInput, match="machine code"):
        load(path)
    load(path, trust_code=True)
    monkeypatch.setenv("HASTEN_TRUST_CODE", "1")
    load(path)


def test_machine_code_of_another_user_is_refused(
    digits_task: hasten.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "me"))
    path = _inductor_copy(digits_task, tmp_path / "x.hasten")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "somebody-else"))
    with pytest.raises(InvalidInput, match="HASTEN_TRUST_CODE"):
        hasten.load(path)
    with pytest.raises(InvalidInput, match="machine code"):
        verify(path)


def test_without_a_place_for_a_key_own_code_must_be_trusted_by_hand(
    digits_task: hasten.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    path = _inductor_copy(digits_task, tmp_path / "x.hasten")
    with pytest.raises(InvalidInput, match="machine code"):
        load(path)
    load(path, trust_code=True)


def _no_directory_entries(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def _huge_array(folder: Path) -> None:
    """A header that promises 4 EiB; the manifest is made to agree."""
    with (folder / "check_input_0.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (2**60,)})
    _agree(folder, "check_input_0.npy")


def _agree(folder: Path, name: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _deep_certificate(folder: Path) -> None:
    (folder / "certificate.json").write_text("[" * 100_000)
    _agree(folder, "certificate.json")


def _deep_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"a":' * 100_000)


@pytest.mark.parametrize("tamper", [_no_directory_entries, _huge_array, _deep_manifest])
def test_hostile_folders_are_refused(copy: Path, tamper: Callable[[Path], None]) -> None:
    tamper(copy)
    with pytest.raises(InvalidInput):
        verify(copy)


def test_a_hostile_certificate_is_refused(copy: Path) -> None:
    _deep_certificate(copy)
    with pytest.raises(InvalidInput, match="valid JSON"):
        _ = Artifact(copy).certificate


def test_onnx_data_outside_the_folder_is_not_read(copy: Path, tmp_path: Path) -> None:
    import onnx

    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"\x01" * 4096)
    model = onnx.load(copy / "model.onnx")
    weight = next(x for x in model.graph.initializer if len(x.raw_data) >= 64)
    size = len(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "../secret.bin", "offset": "0", "length": str(size)}.items():
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    _agree(copy, "model.onnx")
    with pytest.raises(Exception, match=r"(?i)external|secret|path"):
        load(copy)


@pytest.mark.parametrize("target", ["onnxruntime", "eager"])
def test_what_the_first_release_wrote_still_loads(target: str) -> None:
    folder = Path(__file__).parent / "data" / f"schema-1-{target}"
    assert Artifact(folder).manifest["schema"] == 1
    recipe = Recipe.from_yaml((folder / "recipe.yaml").read_text())
    assert [name_of(step) for step in recipe.steps] == ["prune_filters", "quantize"]
    assert hasten.verify(folder).deviation < 0.01


def test_an_artifact_does_not_tell_where_it_was_made(digits_artifact: Artifact) -> None:
    here = str(Path(hasten.__file__).parents[2]).encode()
    for path in digits_artifact.path.rglob("*"):
        assert path.is_dir() or here not in path.read_bytes(), path
