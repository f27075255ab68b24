"""JPEG files to answers, and normalisation inside the graph against outside of it."""

import io
import time
from pathlib import Path
from typing import Any

import numpy as np

from engine_bench.models import LARGE, SCALE, SHIFT, alone, convolutional, summary
from engine_bench.scheduling import through_engine
from hasten.engine.batch import run_batch
from hasten.engine.engine import Engine
from hasten.engine.runner import open_artifact
from hasten.machine import usable_cores


def write_jpegs(folder: Path, count: int) -> None:
    """Smooth random images of 500x375, quality 90: about as much to decode as photographs."""
    from PIL import Image

    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        fine = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = np.clip(fine + generator.normal(0, 12, fine.shape), 0, 255).astype(np.uint8)
        data = io.BytesIO()
        Image.fromarray(noisy).save(data, "JPEG", quality=90)
        (folder / f"{index:05}.jpg").write_bytes(data.getvalue())


def jpeg(scratch: Path, repeats: int, decoder: str, count: int = 320) -> dict[str, Any]:
    """Rows per second from JPEG files to answers / of the model alone, and of a plain loop / of the model alone.

    Decoding and the model share the cores: more than `model / (model + decoding)` of the model alone is not to be had,
    so the rate is also given as a part of that.
    """
    path = convolutional(scratch, "photographs", size=224, channels=48, layers=6, raw=True)
    write_jpegs(scratch / "images", count)
    runner = open_artifact(path)
    from hasten.engine.images import ImageReader

    reader = ImageReader.for_input(runner.inputs[0], decoder=decoder)
    files = sorted((scratch / "images").iterdir())
    found: dict[str, list[float]] = {}
    for repeat in range(repeats):
        rate, _ = alone(runner.lanes[0], runner.example[0][:1], len(runner.lanes), 1.5)
        rows_per_s = _steady_rate(run_batch, path, scratch / "images", scratch / f"out-{repeat}", decoder=decoder)
        start = time.perf_counter()
        for file in files[:40]:
            runner.lanes[0](reader(file.read_bytes()))
        loop = 40 / (time.perf_counter() - start)
        start = time.perf_counter()
        for file in files[:40]:
            reader(file.read_bytes())
        decode_ms = 1e3 * (time.perf_counter() - start) / 40
        model_ms = 1e3 * len(runner.lanes) / rate
        for key, value in (
            ("pipeline / model alone", rows_per_s / rate),
            ("plain loop / model alone", loop / rate),
            ("pipeline / what model and decoding on these cores allow", rows_per_s / rate * (1 + decode_ms / model_ms)),
            ("model, ms", model_ms),
            ("decoding one image, ms", decode_ms),
        ):
            found.setdefault(key, []).append(value)
    return {key: summary(values) for key, values in found.items()}


def on_ray(scratch: Path, repeats: int, count: int = 4000) -> dict[str, Any]:
    """Steady rate of a batch job on Ray Data / of the local engine: the same job, from its first part to its last."""
    import logging

    import ray

    from hasten.engine.on_ray import run_batch_on_ray

    path = convolutional(scratch, "large", **LARGE)
    np.save(scratch / "rows.npy", np.random.default_rng(0).normal(size=(count, 3, 96, 96)).astype(np.float32))
    found: dict[str, list[float]] = {"Ray Data / local engine, steady rate": []}
    ray.init(num_cpus=usable_cores(), log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    try:
        for repeat in range(repeats):
            rates = []
            for way in (run_batch, run_batch_on_ray):
                out = scratch / f"{way.__name__}-{repeat}"
                rates.append(_steady_rate(way, path, scratch / "rows.npy", out, shard_rows=100, ends=3))
            found["Ray Data / local engine, steady rate"].append(rates[1] / rates[0])
    finally:
        ray.shutdown()
    return {key: summary(values) for key, values in found.items()}


def _steady_rate(
    way: Any, path: Path, source: Path, out: Path, *, shard_rows: int = 32, ends: int = 1, **options: Any
) -> float:
    """Rows per second of a batch job between two of its parts, the `ends`-th from either end.

    So neither the start of the engine counts, nor the time when not everything is busy.
    """
    seen: list[tuple[float, int]] = []
    way(
        path,
        source,
        out,
        shard_rows=shard_rows,
        progress=lambda done, total: seen.append((time.perf_counter(), done)),
        **options,
    )
    (start, before), (end, after) = seen[ends - 1], seen[-ends]
    return (after - before) / (end - start)


def fused(scratch: Path, repeats: int, seconds: float) -> dict[str, Any]:
    """uint8 images normalised inside the graph against float32 images normalised in numpy before they are sent."""
    found: dict[str, Any] = {}
    for target in ("onnxruntime", "openvino"):
        inside = convolutional(scratch, f"inside-{target}", **LARGE, raw=True, target=target)
        outside = convolutional(scratch, f"outside-{target}", **LARGE, target=target)
        for processes in (False, True):
            found[f"{target}, {'processes' if processes else 'threads'}"] = _pair(
                inside, outside, processes, repeats, seconds
            )
    return found


def _pair(inside: Path, outside: Path, processes: bool, repeats: int, seconds: float) -> dict[str, Any]:
    options: dict[str, Any] = {"largest": 8, "profile_s": 0.2, "processes": processes}
    raw = np.random.default_rng(0).integers(0, 256, (8, LARGE["size"], LARGE["size"], 3)).astype(np.uint8)
    ratios = []
    with Engine(inside, **options) as first, Engine(outside, **options) as second:
        normalising = _Normalised(second)
        for repeat in range(repeats):
            rates = {}
            for name, way in (("inside", first), ("outside", normalising))[:: 1 if repeat % 2 == 0 else -1]:
                rates[name] = through_engine(way, raw, seconds)
            ratios.append(rates["inside"] / rates["outside"])
    return {"inside / outside, rows/s": summary(ratios)}


class _Normalised:
    """An engine whose rows are normalised in numpy on the way in, one plane after the other as `ImageReader` does."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def map(self, source: Any) -> Any:
        return self._engine.map(map(self._normalise, source))

    @staticmethod
    def _normalise(raw: np.ndarray) -> np.ndarray:
        planes = np.empty((len(raw), 3, *raw.shape[1:3]), np.float32)
        for c in range(3):
            np.multiply(raw[..., c], SCALE[c], out=planes[:, c])
            planes[:, c] += SHIFT[c]
        return planes
