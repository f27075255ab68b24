import io
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import hasten
from hasten.cli import app
from hasten.engine.batch import held, run_batch
from hasten.engine.images import ImageReader, _jpeg_size
from hasten.errors import InvalidInput

ENGINE: dict[str, Any] = {"replicas": 2, "profile_s": 0, "largest": 16}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.npy"
    np.save(path, np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32))
    return path


def collect(output: Path, keys: bool = False) -> np.ndarray:
    parts = [np.load(x, allow_pickle=False) for x in sorted(output.glob("part-*.npz"))]
    return np.concatenate([part["key" if keys else "output_0"] for part in parts])


def test_npy_every_row_in_order_and_resumed(artifact: Path, rows: Path, tmp_path: Path) -> None:
    expected = hasten.load(artifact)(np.load(rows))[0]
    report = run_batch(artifact, rows, tmp_path / "out", shard_rows=300, **ENGINE)
    assert (report.rows, report.shards, report.skipped) == (1000, 4, 0)
    assert np.allclose(collect(tmp_path / "out"), expected, atol=1e-5)
    assert list(collect(tmp_path / "out", keys=True)) == [str(i) for i in range(1000)]
    (tmp_path / "out" / "part-00002.npz").unlink()
    (tmp_path / "out" / "part-00002.npz.unfinished").write_bytes(b"half")
    before = (tmp_path / "out" / "part-00001.npz").stat().st_mtime_ns
    again = run_batch(artifact, rows, tmp_path / "out", shard_rows=300, **ENGINE)
    assert (again.rows, again.shards, again.skipped) == (300, 1, 3)
    assert (tmp_path / "out" / "part-00001.npz").stat().st_mtime_ns == before
    assert np.allclose(collect(tmp_path / "out"), expected, atol=1e-5)
    assert not list((tmp_path / "out").glob("*.unfinished"))
    with pytest.raises(InvalidInput, match="left by the same job"):
        run_batch(artifact, rows, tmp_path / "out", shard_rows=200, **ENGINE)


def test_a_job_that_fails_leaves_whole_parts_only(artifact: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for index in range(5):
            buffer = io.BytesIO()
            np.save(buffer, np.full(4 if index < 4 else 5, index, np.float32))
            info = tarfile.TarInfo(f"sample{index}.npy")
            info.size = len(buffer.getvalue())
            archive.addfile(info, io.BytesIO(buffer.getvalue()))
    with pytest.raises(InvalidInput, match="must have shape"):
        run_batch(artifact, tmp_path / "a.tar", tmp_path / "out", **ENGINE)
    assert {x.name for x in (tmp_path / "out").iterdir()} == {".lock", "job.json"}


def test_parquet_in_and_out(artifact: Path, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    x = np.random.default_rng(1).normal(size=(90, 4)).astype(np.float32)
    table = pa.table({"id": list(range(90)), "features": list(x)})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=40)
    report = run_batch(artifact, tmp_path / "in.parquet", tmp_path / "out", parquet=True, **ENGINE)
    assert (report.rows, report.shards) == (90, 3)
    found: list[Any] = [pq.read_table(part) for part in sorted((tmp_path / "out").glob("*.parquet"))]
    y = np.concatenate([t["output_0"].combine_chunks().to_numpy_ndarray() for t in found])
    assert np.allclose(y, hasten.load(artifact)(x)[0], atol=1e-5)
    with pytest.raises(InvalidInput, match="`column` must be one of id, features"):
        run_batch(artifact, tmp_path / "in.parquet", tmp_path / "other", column="x", **ENGINE)


@pytest.fixture(scope="module")
def image_artifact(make_artifact: Callable[..., Path]) -> Path:
    """Mean of every channel of a [rows, 3, 8, 8] image."""
    from onnx import helper

    nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)]
    example = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    return make_artifact("mean", nodes, {"axes": np.array([2, 3], np.int64)}, example)


def png(colour: tuple[int, int, int], size: tuple[int, int] = (20, 12)) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("decoder", ["pillow", "opencv"])
def test_a_folder_and_a_tar_of_images(image_artifact: Path, tmp_path: Path, decoder: str) -> None:
    pytest.importorskip("PIL" if decoder == "pillow" else "cv2")
    colours = [(i * 10, 255 - i * 10, 7) for i in range(20)]
    (tmp_path / "in" / "b").mkdir(parents=True)
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        for index, colour in enumerate(colours):
            (tmp_path / "in" / "b" / f"{index:02}.png").write_bytes(png(colour))
            info = tarfile.TarInfo(f"{index:02}.png")
            info.size = len(png(colour))
            archive.addfile(info, io.BytesIO(png(colour)))
            label = tarfile.TarInfo(f"{index:02}.cls")
            archive.addfile(label, io.BytesIO())
    expected = (np.array(colours) / 255 - 0.5) / 0.25
    options: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "decoder": decoder, **ENGINE}
    run_batch(image_artifact, tmp_path / "in", tmp_path / "a", shard_rows=7, **options)
    run_batch(image_artifact, tmp_path / "in.tar", tmp_path / "b", **options)
    for out in ("a", "b"):
        assert np.allclose(collect(tmp_path / out), expected, atol=1e-4)
    assert collect(tmp_path / "a", keys=True)[1] == "b/01.png"
    assert collect(tmp_path / "b", keys=True)[1] == "01"
    (tmp_path / "in" / "b" / "05.png").write_bytes(b"not an image")
    with pytest.raises(InvalidInput, match=r"05\.png"):
        run_batch(image_artifact, tmp_path / "in", tmp_path / "c", **options)


def test_crop_and_layout() -> None:
    from PIL import Image

    halves = np.zeros((8, 16, 3), np.uint8)
    halves[:, 4:12] = 200  # the centre square
    buffer = io.BytesIO()
    Image.fromarray(halves).save(buffer, "PNG")
    spec = {"name": "x", "dtype": "uint8", "shape": [None, 4, 4, 3]}
    row = ImageReader.for_input(spec)(buffer.getvalue())
    assert row.shape == (1, 4, 4, 3)
    # The antialiasing filter reaches past the edge of the crop by less than a pixel.
    assert (row[:, :, 1:3] == 200).all()
    assert (row > 150).all()
    tall = ImageReader(8, 16, 3, True, "uint8")(buffer.getvalue())
    assert np.array_equal(tall[0], halves)
    with pytest.raises(InvalidInput, match="`size` must be given"):
        ImageReader.for_input({"name": "x", "dtype": "float32", "shape": [None, 3, None, None]})


def jpeg(image: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(30, 30), (70, 50), (150, 120), (700, 500), (1300, 900)])
def test_both_decoders_see_the_same_picture(size: tuple[int, int]) -> None:
    pytest.importorskip("cv2")
    from PIL import Image

    coarse = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    sideways = Image.Exif()
    sideways[0x0112] = 6  # what a camera held upright writes; neither decoder turns the pixels
    for data in (jpeg(picture), jpeg(picture, exif=sideways), jpeg(picture, progressive=True)):
        for channels in (1, 3):
            one, other = (
                ImageReader(32, 32, channels, True, "uint8", decoder=name)(data).astype(int)
                for name in ("pillow", "opencv")
            )
            assert one.shape == other.shape == (1, 32, 32, channels)
            assert np.abs(one - other).mean() < 1.5
            assert np.abs(one - other).max() < 12


def test_large_jpegs_are_decoded_small() -> None:
    from PIL import Image

    assert _jpeg_size(jpeg(Image.new("RGB", (1300, 900)))) == (900, 1300)
    assert _jpeg_size(jpeg(Image.new("L", (31, 17)), progressive=True)) == (17, 31)
    for broken in (b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xff\xff", b"\xff\xd8\xff\xe0\x00", b"\x89PNG" * 9):
        assert _jpeg_size(broken) is None
    reader = ImageReader(224, 224)
    assert [reader._fraction(*x) for x in ((375, 500), (447, 9000), (448, 448), (1792, 1792), (9000, 9000))] == [
        1, 1, 1, 4, 8
    ]  # fmt: skip


def test_command(artifact: Path, rows: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["batch", str(artifact), str(rows), str(tmp_path / "out"), "--quiet"])
    assert result.exit_code == 0, result.output
    assert "1000 rows" in result.output
    assert "bottleneck" in result.output
    assert len(collect(tmp_path / "out")) == 1000
    assert json.loads((tmp_path / "out" / "job.json").read_text())["rows"] == [1000]


def test_what_cannot_be_run_leaves_nothing_behind(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nothing\.hasten"):
        run_batch(tmp_path / "nothing.hasten", rows, tmp_path / "out", **ENGINE)
    assert not (tmp_path / "out").exists()


def test_without_ray_it_says_what_to_install(
    artifact: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hasten.serve.on_ray import deploy
    from hasten.serve.run import ServeOptions

    monkeypatch.setitem(sys.modules, "ray", None)
    command = ["batch", str(artifact), str(rows), str(tmp_path / "out"), "--ray", "local", "--quiet"]
    found = CliRunner().invoke(app, command)
    assert isinstance(found.exception, InvalidInput)
    assert "pip install 'hasten[ray]'" in str(found.exception)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InvalidInput, match="What runs on Ray needs"):
        deploy([], ServeOptions())


def test_other_data_is_not_taken_for_what_is_done(artifact: Path, tmp_path: Path) -> None:
    """Tomorrow's file may have the name and the number of rows of today's."""
    today, tomorrow, out = tmp_path / "today", tmp_path / "tomorrow", tmp_path / "out"
    for seed, folder in enumerate((today, tomorrow)):
        folder.mkdir()
        np.save(folder / "rows.npy", np.random.default_rng(seed).normal(size=(20, 4)).astype(np.float32))
    run_batch(artifact, today / "rows.npy", out, **ENGINE)
    with pytest.raises(InvalidInput, match="left by the same job"):
        run_batch(artifact, tomorrow / "rows.npy", out, **ENGINE)
    (today / "rows.npy").write_bytes((tomorrow / "rows.npy").read_bytes())
    with pytest.raises(InvalidInput, match="left by the same job"):
        run_batch(artifact, today / "rows.npy", out, **ENGINE)


def test_another_column_is_another_job(artifact: Path, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {
        name: pa.FixedShapeTensorArray.from_numpy_ndarray(np.full((6, 4), i, np.float32)) for i, name in enumerate("ab")
    }
    parquet.write_table(pa.table(columns), tmp_path / "rows.parquet")
    run_batch(artifact, tmp_path / "rows.parquet", tmp_path / "out", column="a", **ENGINE)
    with pytest.raises(InvalidInput, match="left by the same job"):
        run_batch(artifact, tmp_path / "rows.parquet", tmp_path / "out", column="b", **ENGINE)


def test_two_jobs_do_not_write_to_one_folder(artifact: Path, rows: Path, tmp_path: Path) -> None:
    with held(tmp_path / "out"), pytest.raises(InvalidInput, match="no other job writes to"):
        run_batch(artifact, rows, tmp_path / "out", **ENGINE)
    assert run_batch(artifact, rows, tmp_path / "out", **ENGINE).rows == 1000
