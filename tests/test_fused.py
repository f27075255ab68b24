"""Pre- and postprocessing compiled into the artifact: the same answers as apart, on raw inputs, left in float."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

import hasten
from hasten.errors import InvalidInput
from hasten.graph.capture import as_tuple, capture, has_dynamic_batch, placeholders
from hasten.graph.fuse import fuse
from hasten.graph.resize import resize_by_products
from hasten.recipe import Recipe, make_target, make_technique
from hasten.task import Task, default_score


def rounds(node: Node) -> bool:
    return "quantized_decomposed.quantize" in str(node.target)


class Pixels(nn.Module):
    """uint8 [N, 20, 24, 3] to float [N, 3, 12, 12], resized with antialiasing and normalised."""

    def __init__(self, antialias: bool = True) -> None:
        super().__init__()
        self.antialias = antialias
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        x = image.permute(0, 3, 1, 2).float() / 255
        x = nn.functional.interpolate(x, (12, 12), mode="bilinear", antialias=self.antialias)
        return (x - self.get_buffer("mean")) / 0.25


class Best(nn.Module):
    """The two most probable classes: probabilities [N, 2] and class numbers [N, 2]."""

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        values, classes = torch.topk(torch.softmax(logits, -1), 2)
        return values, classes


def second_best(output: tuple[Tensor, Tensor], target: Any) -> Tensor:
    wanted = target[1][:, :1] if isinstance(target, tuple) else target[:, None]
    return (output[1] == wanted).any(1).float()


def made(**fields: Any) -> Task:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    raw = torch.randint(0, 256, (24, 20, 24, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 5, (24,), generator=generator)
    batches = list(zip(raw.split(8), labels.split(8), strict=True))
    given: dict[str, Any] = {
        "model": net.eval(), "example": (raw[:3],), "holdout": batches, "preprocess": Pixels(), "postprocess": Best(),
        "score": second_best,
    }  # fmt: skip
    return Task(**(given | fields))


def apart(task: Task, raw: Tensor) -> tuple[Tensor, ...]:
    assert task.preprocess is not None
    assert task.postprocess is not None
    with torch.no_grad():
        return as_tuple(task.postprocess(task.model(task.preprocess(raw))))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "eager"])
def test_the_artifact_takes_raw_inputs_and_answers_as_apart(target: str, tmp_path: Path) -> None:
    if missing := make_target(target).missing():
        pytest.skip(missing)
    task = made()
    artifact = hasten.compile(capture(task.model, task.inner.example), task, target, tmp_path / "fused.hasten")
    assert artifact.manifest["inputs"] == [{"name": "image", "dtype": "uint8", "shape": [None, 20, 24, 3]}]
    raw = torch.cat([inputs for inputs, _ in task.holdout])[:7]
    values, classes = apart(task, raw)
    found = artifact.load()(raw.numpy())
    np.testing.assert_allclose(found[0], values.numpy(), atol=1e-5)
    assert np.array_equal(found[1], classes.numpy())


def test_a_recipe_is_replayed_on_raw_inputs(tmp_path: Path) -> None:
    task = made()
    recipe = Recipe((make_technique("quantize"),), make_target("onnxruntime"))
    artifact = hasten.apply(recipe, task, tmp_path / "applied.hasten")
    assert artifact.load()(task.example[0].numpy())[1].shape == (3, 2)


def test_quantization_leaves_both_in_float(tmp_path: Path) -> None:
    task = made()
    graph = capture(task.model, task.inner.example)
    quantized = hasten.Quantize().apply(graph, task.inner)
    fused = fuse(quantized, task)
    nodes = [n for n in fused.graph.nodes if n.op == "call_function"]
    first = next(i for i, n in enumerate(nodes) if rounds(n))
    resize = next(i for i, n in enumerate(nodes) if "upsample" in str(n.target))
    assert resize < first
    assert sum(rounds(n) for n in nodes) == sum(rounds(n) for n in quantized.graph.nodes)
    after = [i for i, n in enumerate(nodes) if "softmax" in str(n.target) or "topk" in str(n.target)]
    assert min(after) > max(i for i, n in enumerate(nodes) if rounds(n))
    artifact = hasten.compile(quantized, task, "onnxruntime", tmp_path / "int8.hasten")
    raw = task.example[0]
    with torch.no_grad():
        expected = task.postprocess(quantized(task.inner.example[0]))  # type: ignore[misc]
    np.testing.assert_allclose(artifact.load()(raw.numpy())[0], expected[0].numpy(), atol=0.01)


def test_without_either_module_nothing_changes() -> None:
    task = made(preprocess=None, postprocess=None, example=(torch.randn(2, 3, 12, 12),), score=None)
    graph = capture(task.model, task.example)
    assert task.inner is task
    assert fuse(graph, task) is graph


def test_one_module_alone_keeps_the_names_and_the_batch() -> None:
    task = made(postprocess=None, score=None)
    assert task.inner.score is None
    fused = fuse(capture(task.model, task.inner.example), task)
    assert [n.name for n in placeholders(fused)] == ["image"]
    assert has_dynamic_batch(fused)
    bare = made(preprocess=None, example=(torch.randn(2, 3, 12, 12),), postprocess=nn.Softmax(-1), score=None)
    graph = capture(bare.model, bare.example)
    assert [n.name for n in placeholders(fuse(graph, bare))] == [n.name for n in placeholders(graph)]


def test_the_inner_task_is_preprocessed_and_scored_after() -> None:
    task = made()
    inner = task.inner
    batches = list(inner.holdout)
    assert [tuple(x[0].shape) for x, _ in batches] == [(8, 3, 12, 12)] * 3
    assert inner.preprocess is None
    assert inner.postprocess is None
    assert inner.score is not None
    (x,), target = batches[0]
    with torch.no_grad():
        logits = task.model(x)
    assert torch.equal(inner.score(logits, target), second_best(Best()(logits), target))
    unlabelled = made(holdout=[(inputs, None) for inputs, _ in task.holdout])
    _, answered = next(iter(unlabelled.inner.holdout))
    assert torch.equal(inner.score(logits, answered), torch.ones(8))
    assert len(inner.holdout) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preprocess": lambda x: x}, "`preprocess` must be a torch.nn.Module or None"),
        ({"postprocess": 3}, "`postprocess` must be a torch.nn.Module or None"),
    ],
)
def test_what_is_no_module_is_refused_at_the_door(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        made(**fields)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"`preprocess` must run on raw inputs.*but raised"):
        _ = made(preprocess=nn.Linear(3, 3)).inner.example
    task = made(score=None)
    graph = capture(task.model, task.inner.example)
    with pytest.raises(InvalidInput, match=r"`score` or `metric` must be given when `postprocess` changes the shape"):
        fuse(graph, task)
    with pytest.raises(InvalidInput, match="`preprocess` must return the inputs that the graph was captured with"):
        fuse(capture(nn.Flatten(), (torch.randn(2, 4, 4),)), made())


@pytest.mark.slow
def test_a_run_searches_on_raw_inputs(digits_task: Task, tmp_path: Path) -> None:
    """The whole way: raw holdout in, certified artifact of raw inputs out."""

    class Scale(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return pixels.permute(0, 3, 1, 2).float() / 16

    def raw(batches: Any) -> list[tuple[Tensor, Tensor]]:
        return [((x * 16).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous(), y) for x, y in batches]

    holdout = raw(digits_task.holdout)
    task = Task(
        digits_task.model, (holdout[0][0][:8],), holdout, preprocess=Scale(), postprocess=nn.Softmax(-1), name="raw"
    )
    result = hasten.run(task, hasten.Budget(max_drop=0.03, training=False), targets="onnxruntime", out=tmp_path / "run")
    assert result.best is not None, result.explanation
    assert result.best.manifest["inputs"] == [{"name": "pixels", "dtype": "uint8", "shape": [None, 8, 8, 1]}]
    images, labels = (torch.cat(x) for x in zip(*holdout, strict=True))
    (found,) = result.best.load()(images.numpy())
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-4)
    assert float(default_score(torch.from_numpy(found), labels).mean()) > 0.9


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [{"size": (5, 9)}, {"scale_factor": 0.4}], ids=["size", "scale"])
def test_antialiased_resizing_equals_two_products(mode: str, size: dict[str, Any]) -> None:
    class Resize(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.interpolate(x, mode=mode, antialias=True, **size)

    x = torch.randn(2, 3, 13, 17, generator=torch.Generator().manual_seed(0))
    graph = capture(Resize(), (x,))
    products = resize_by_products(graph)
    assert not any("upsample" in str(n.target) for n in products.graph.nodes if n.op == "call_function")
    torch.testing.assert_close(products(x), graph(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scales", [(), (0.4, 0.6)], ids=["size", "scales"])
def test_a_resize_that_was_called_as_an_operator_is_two_products_too(scales: tuple[float, ...]) -> None:
    class Resize(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = torch.ops.aten._upsample_bilinear2d_aa.default(x, [5, 10], False, *scales)
            return result

    x = torch.randn(2, 3, 13, 17, generator=torch.Generator().manual_seed(0))
    graph = capture(Resize(), (x,))
    products = resize_by_products(graph)
    assert not any("upsample" in str(n.target) for n in products.graph.nodes if n.op == "call_function")
    torch.testing.assert_close(products(x), graph(x), atol=1e-5, rtol=1e-5)
