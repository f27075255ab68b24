"""Artifacts that somebody made to harm: each is refused by hasten's own error, and nothing of it is run or read.

What could be refused by a hash alone is not tried here: whoever writes an artifact writes its manifest too.
"""

import ctypes
import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hasten
from hasten import seal
from hasten.artifact import Artifact, load
from hasten.errors import InvalidInput
from hasten.graph.plan import Plan, Value
from hasten.manifest import read_json, read_npz
from hasten.recipe import Recipe, make_target, targets
from hasten.stacks import rknn

SECRET = np.arange(32, dtype=np.float32)


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    return Artifact(artifact).save(tmp_path / "copy.hasten").path


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    edit(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def agree(folder: Path) -> None:
    """Make the manifest list the files as they are."""
    files = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("manifest.json", "seal")
    }
    change(folder, lambda manifest: manifest.update(files=files))


def external(location: str, offset: int = 0, length: int = SECRET.nbytes, where: str = "initializer") -> bytes:
    """An ONNX file of the artifact's inputs and outputs, whose first weight lies where `location` says."""
    from onnx import TensorProto, helper

    weight = TensorProto(name="w1", data_type=TensorProto.FLOAT, dims=[4, 8], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    nodes = [helper.make_node("MatMul", ["x", "w1"], ["y"])]
    initializers = [weight]
    if where == "constant":
        nodes.insert(0, helper.make_node("Constant", [], ["w1"]))
        attribute = nodes[0].attribute.add(name="value", type=4)
        attribute.t.CopyFrom(weight)
        initializers = []
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        initializers,
    )
    model: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    ).SerializeToString()
    return model


@pytest.mark.parametrize("where", ["initializer", "constant"])
@pytest.mark.parametrize("kind", ["beside", "absolute", "around", "memory", "beyond", "negative", "device"])
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_weights_come_from_the_folder_alone(copy: Path, tmp_path: Path, target: str, kind: str, where: str) -> None:
    """Files outside, devices, and addresses in this process's memory, which some readers of ONNX know a name for.

    OpenVINO reads ONNX out of a file that is called `model.xml`.
    """
    if make_target(target).missing():
        pytest.skip(f"{target} is not installed")
    memory = ctypes.create_string_buffer(SECRET.tobytes(), SECRET.nbytes)
    (tmp_path / "secret.bin").write_bytes(SECRET.tobytes())
    (copy / "inside").mkdir()
    (copy / "inside" / "weights.bin").write_bytes(SECRET.tobytes())
    location, offset = {
        "beside": ("../secret.bin", 0),
        "absolute": (str(tmp_path / "secret.bin"), 0),
        "around": ("inside/../../secret.bin", 0),
        "memory": ("*/_ORT_MEM_ADDR_/*", ctypes.addressof(memory)),
        "beyond": ("inside/weights.bin", 2**40),
        "negative": ("inside/weights.bin", -64),
        "device": ("/dev/zero", 0),
    }[kind]
    (copy / "model.onnx").unlink()
    name = "model.onnx" if target == "onnxruntime" else "model.xml"
    (copy / name).write_bytes(external(location, offset, where=where))
    change(copy, lambda m: m.update(target={"name": target, "options": {}}))
    agree(copy)
    with pytest.raises(InvalidInput, match=r"must hold a program that|must be OpenVINO's XML"):
        load(copy)


def test_operators_of_other_libraries_are_refused(copy: Path) -> None:
    import onnx
    from onnx import helper

    for domain, operator in (("com.example", "Anything"), ("com.microsoft", "EPContext")):
        model = onnx.load(copy / "model.onnx")
        del model.graph.node[:]
        node = helper.make_node(operator, ["x"], ["y"], domain=domain, ep_cache_context="/bin/true", embed_mode=0)
        model.graph.node.append(node)
        model.opset_import.append(helper.make_opsetid(domain, 1))
        (copy / "model.onnx").write_bytes(model.SerializeToString())
        agree(copy)
        with pytest.raises(InvalidInput, match="must hold a program that onnxruntime can load"):
            load(copy)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('offset="0"', 'offset="4096000"'),
        ('offset="0"', 'offset="-64"'),
        ('offset="0"', 'offset="18446744073709551608"'),
        ('shape="4,8"', 'shape="4,800000000"'),
        ('version="opset1"', 'version="extension"'),
    ],
)
def test_openvino_files_that_lie_are_refused(tmp_path: Path, old: str, new: str) -> None:
    ov = pytest.importorskip("openvino", reason="the `openvino` extra is not installed")
    from openvino import opset13

    x = opset13.parameter([-1, 4], np.float32, name="x")
    y = opset13.matmul(x, opset13.constant(SECRET.reshape(4, 8)), False, False)
    ov.save_model(ov.Model([y], [x], "m"), tmp_path / "model.xml", compress_to_fp16=False)
    text = (tmp_path / "model.xml").read_text().replace('shape="4, 8"', 'shape="4,8"')
    assert old in text
    (tmp_path / "model.xml").write_text(text.replace(old, new, 1))
    with pytest.raises(Exception, match=r"(?i)weights|attribute|stoll|size|shape|opset|inconsistent|convert"):
        make_target("openvino").load(tmp_path)


def _pipe(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")


def _linked(target: str) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        (folder / "manifest.json").unlink()
        (folder / "manifest.json").symlink_to(target)

    return tamper


def _text(old: str, new: str) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        text = (folder / "manifest.json").read_text()
        assert old in text
        (folder / "manifest.json").write_text(text.replace(old, new, 1))

    return tamper


def _edited(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda folder: change(folder, edit)


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (_pipe, "must be a plain file"),
        (_linked("/proc/kmsg"), "no link"),
        (_linked("/etc/hostname"), "no link"),
        (_linked("/nowhere"), "no link"),
        (_text('"schema": 1', '"schema": 1, "schema": 1'), "stands twice"),
        (_text('"cores"', '"a": NaN, "cores"'), "is no number"),
        (_text('"cores"', f'"a": {"9" * 5000}, "cores"'), "valid JSON"),
        (_edited(lambda m: m.update(schema=True)), "must have schema 1"),
        (_edited(lambda m: m.update(schema=0)), "must have schema 1, but has 0. Use the hasten that wrote it."),
        (_edited(lambda m: m["inputs"][0].update(shape=[True, 4])), "It was changed"),
        (_edited(lambda m: m["inputs"][0].update(shape=[None, 2**41])), "It was changed"),
        (_edited(lambda m: m["inputs"][0].update(shape=[2**21, 2**21])), "It was changed"),
        (_edited(lambda m: m["inputs"][0].update(shape=[1] * 33)), "It was changed"),
        (_edited(lambda m: m["inputs"][0].update(name="\x1b[2J")), "It was changed"),
        (_edited(lambda m: m["inputs"].append(m["inputs"][0])), "a name of its own"),
        (_edited(lambda m: m["outputs"].extend(m["outputs"] * 2000)), "It was changed"),
        (_edited(lambda m: m["files"].update({"a\nb": ""})), "inside the folder"),
        (_edited(lambda m: m["files"].update({"\ud800": ""})), "inside the folder"),
        (_edited(lambda m: m["files"].update({"a\0b": ""})), "inside the folder"),
        (_edited(lambda m: m["target"].update(name="../os")), "target must be one of"),
        (_edited(lambda m: m["target"].update(name="x" * 10**6)), "target must be one of"),
        (_edited(lambda m: m["target"]["options"].update(threads=10**6)), r"`threads` must be in \[0, 1024\]"),
        (_edited(lambda m: m["target"]["options"].update(threads=10**30)), "must be of type int"),
        (lambda f: (f / "\x1b[2J").write_text(""), r"also has '\\x1b"),
    ],
)
def test_hostile_manifests_and_folders(copy: Path, tamper: Callable[[Path], object], message: str) -> None:
    tamper(copy)
    with pytest.raises(InvalidInput, match=message) as caught:
        load(copy)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 3000


def test_folders_in_folders_without_end_are_refused(copy: Path) -> None:
    handle = os.open(copy, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=handle)
        inner = os.open("d", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(handle)
    try:
        with pytest.raises(InvalidInput, match="must hold files that can be read"):
            load(copy)
    finally:  # neither Python nor pytest could remove it
        subprocess.run(["rm", "-rf", str(copy / "d")], check=True)


def test_a_certificate_elsewhere_is_not_read(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"passed": true}')
    (copy / "certificate.json").symlink_to(tmp_path / "other.json")
    with pytest.raises(InvalidInput, match="no link"):
        _ = Artifact(copy).certificate


def test_what_runs_machine_code_says_so() -> None:
    """Found by the calls that do it, so that a new target cannot forget."""
    source = Path(hasten.__file__).parent
    runs_code = re.compile(
        r"aoti_load_package|load_vm_flatbuffer|deserialize_cuda_engine|runtime\.load_module|CDLL|dlopen|\bexec\("
    )
    for name, cls in targets().items():
        files = [source / "targets" / f"{name}.py", source / "stacks" / f"{getattr(cls, 'stack', name)}.py"]
        found = any(runs_code.search(path.read_text()) for path in files if path.is_file())
        assert getattr(cls, "native_code", False) == found, name


def test_a_seal_counts_only_where_nobody_else_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "me"))
    folder = tmp_path / "x.hasten"
    (folder / "inner").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    (folder / "inner" / "code").write_text("")
    (folder / "inner" / "code").chmod(0o664)  # as some systems make files
    seal.write(folder)
    assert seal.is_own(folder)
    for path in (folder, folder / "inner", folder / "inner" / "code"):
        for bit in (0o020, 0o002):
            mode = path.stat().st_mode
            path.chmod(mode | bit)
            assert not seal.is_own(folder)
            path.chmod(mode)
    assert seal.is_own(folder)


def _stored(path: Path, compression: int, header: tuple[int, ...] | None = None) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive, archive.open("c_w.npy", "w") as file:
        shape = (10**6,) if header is None else header
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        if header is None:
            file.write(bytes(4 * 10**6))


@pytest.mark.parametrize("kind", ["bomb", "promise", "pickle", "overlap"])
def test_archives_of_arrays_hold_what_they_say(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "constants.npz"
    if kind == "bomb":
        _stored(path, zipfile.ZIP_DEFLATED)
        assert path.stat().st_size < 10_000
    elif kind == "promise":
        _stored(path, zipfile.ZIP_STORED, (2**40,))
    elif kind == "pickle":
        np.savez(path, c_w=np.array([{}], dtype=object))
    else:
        _stored(path, zipfile.ZIP_STORED)
        data = path.read_bytes()
        at = data.index(b"PK\x01\x02")
        end = data.index(b"PK\x05\x06")
        entry, tail = data[at:end], bytearray(data[end:])
        tail[8:12] = (1000).to_bytes(2, "little") * 2
        tail[12:16] = (1000 * len(entry)).to_bytes(4, "little")
        path.write_bytes(data[:at] + entry * 1000 + bytes(tail))
    with pytest.raises(InvalidInput, match="must hold arrays"):
        read_npz(path)


def test_a_plan_uses_only_what_it_made(tmp_path: Path) -> None:
    Plan((Value("x", "float32", (None,)),), (), ("x",), {}).save(tmp_path)
    document = json.loads((tmp_path / "plan.json").read_text())
    broken: Any
    for broken in (
        document | {"outputs": ["__class__"]},
        document | {"calls": [["y", "aten.relu", {"self": {"node": "z"}}, "", []]]},
        document | {"calls": [["y", 3, {}, "", []]]},
        document | {"calls": 7},
        document | {"schema": 2},
        [],
    ):
        (tmp_path / "plan.json").write_text(json.dumps(broken))
        with pytest.raises(InvalidInput):
            Plan.load(tmp_path)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.npy", "calibration/../../x.npy", "calibration/0_0.txt"])
def test_calibration_files_lie_in_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "dataset.txt").write_text(name)
    with pytest.raises(InvalidInput, match="of `calibration/` alone"):
        rknn._dataset(tmp_path)


def test_calibration_files_hold_no_pickle(tmp_path: Path) -> None:
    (tmp_path / "calibration").mkdir()
    np.save(tmp_path / "calibration" / "0_0.npy", np.array([{}], dtype=object))
    (tmp_path / "dataset.txt").write_text("calibration/0_0.npy")
    with pytest.raises(InvalidInput, match="must hold an array"):
        rknn._dataset(tmp_path)
    np.save(tmp_path / "calibration" / "0_0.npy", np.zeros(3))
    assert rknn._dataset(tmp_path) == str(tmp_path / "calibration" / "0_0.npy")


@pytest.mark.parametrize(
    "value", ["1" + ":10" * 100_000, "0x" + "f" * 100_000, "1:" * 100_000 + "1.5", "'" + "x" * 2000 + "'"]
)
def test_recipes_with_endless_values_are_refused_at_once(value: str) -> None:
    with pytest.raises(InvalidInput, match="must have at most 1024 characters"):
        Recipe.from_yaml(f"target: {{onnxruntime: {{threads: {value}}}}}")


@pytest.mark.parametrize(
    "text",
    [
        "target: !!python/object/apply:os.system ['true']",
        "target: !!python/name:os.system",
        "target: {onnxruntime: {threads: 0x" + "f" * 1000 + "}}",
        "target: {onnxruntime: {threads: .nan}}",
        "target: {onnxruntime: {threads: 1:59:" + "59:" * 300 + "1.5}}",
        "target: {onnxruntime: {threads: true}}",
        "target: {? {a: b} : c}",
        "target: [" * 2000,
        "target: os\nsteps: [{__class__: {}}]",
        "target: onnxruntime\n--- \ntarget: eager",
    ],
)
def test_hostile_recipes_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        Recipe.from_yaml(text)


def test_reading_is_bounded_whatever_the_size_is_said_to_be() -> None:
    with pytest.raises(InvalidInput, match="must be at most 4 bytes"):
        read_json(Path("/proc/self/status"), 4)  # its stated size is 0


def test_two_that_write_to_one_name_leave_one_whole_artifact(artifact: Path, tmp_path: Path) -> None:
    goal = tmp_path / "x.hasten"
    code = "import sys; from pathlib import Path; from hasten.artifact import Artifact\nprint('ready', flush=True)\n"
    code += "sys.stdin.read()\nArtifact(Path(sys.argv[1])).save(sys.argv[2])"
    command = [sys.executable, "-c", code, str(artifact), str(goal)]
    pipe = subprocess.PIPE
    started = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(4)]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    told = [process.communicate()[1] for process in started]
    assert sorted(process.returncode for process in started) == [0, 1, 1, 1]
    assert sum("must not exist yet" in words for words in told) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["x.hasten"]
    load(goal)


def test_what_a_link_leads_to_is_not_copied(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (copy / "recipe.yaml").unlink()
    (copy / "recipe.yaml").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidInput, match="must hold no links"):
        Artifact(copy).save(tmp_path / "shared.hasten")
    assert not (tmp_path / "shared.hasten").exists()
