"""The work list: which networks, on which data, judged how."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hasten.errors import unknown
from hasten_bench.material import Material

Kind = Literal["image", "text", "decoder"]


@dataclass(frozen=True)
class Workload:
    """One network on one set of rows.

    Attributes:
        name: What `--net` takes.
        title: What tables show.
        kind: "image", "text" or "decoder"; decides which variants of a peer are asked.
        net: Module in `nets/` that is handed over as `network.py`.
        options: Keywords of its `network()`.
        input_names: Names of the inputs, in order.
        source: Module in `data/` that `make` takes everything from.
        make: `make(test_rows) -> Material`.
        metric: What tools judge themselves by: "top1", "cosine", or "spearman" (see `job.rank_correlation`).
        test_metric: What the harness judges by: "top1", "spearman", or "" for random weights.
        max_drop: Accepted drop of `test_metric`.
        quick: Part of `make bench-quick`.
    """

    name: str
    title: str
    kind: Kind
    net: str
    input_names: tuple[str, ...]
    source: str
    make: Callable[[int], Material]
    options: Mapping[str, Any] = field(default_factory=dict)
    metric: str = "top1"
    test_metric: str = ""
    max_drop: float = 0.01
    quick: bool = False

    @property
    def trained(self) -> bool:
        """Whether accuracy means something here."""
        return bool(self.test_metric)


def workloads() -> dict[str, Workload]:
    """Every workload by name, in the order of the tables."""
    return {w.name: w for w in _all()}


def workload(name: str) -> Workload:
    """The workload called `name`; raises `InvalidInput` with the nearest names."""
    known = workloads()
    if name not in known:
        raise unknown("net", name, known)
    return known[name]


def _all() -> list[Workload]:
    image = {"kind": "image", "input_names": ("image",)}
    untrained = image | {"source": "random_rows"}
    text = {"kind": "text", "input_names": ("ids", "mask"), "net": "bert"}
    return [
        Workload(
            "efficientnet_lite0", "EfficientNet-Lite0, solar cells, 224 px", net="efficientnet_lite0",
            source="solar", make=_solar, test_metric="top1", quick=True, **image,
        ),
        Workload(
            "minilm", "MiniLM-L6 sentence embeddings, STS 2012-2014", options=_minilm_options(),
            source="sentences", make=_sentences, metric="spearman", test_metric="spearman", quick=True, **text,
        ),
        Workload(
            "resnet56", "ResNet-56, CIFAR-10", net="cifar_resnet", options={"depth": 56},
            make=functools.partial(_cifar, 56), test_metric="top1", source="cifar", **image,
        ),
        Workload(
            "resnet20", "ResNet-20, CIFAR-10", net="cifar_resnet", options={"depth": 20},
            source="cifar", make=functools.partial(_cifar, 20), test_metric="top1", **image,
        ),
        Workload(
            "digits", "small CNN, handwritten digits", net="digits", source="handwriting", make=_digits,
            test_metric="top1", **image,
        ),
        Workload("resnet50", "ResNet-50 (random weights)", net="resnet50", make=_images("resnet50"), **untrained),
        Workload(
            "mobilenet_v2", "MobileNetV2 (random weights)", net="mobilenet_v2", make=_images("mobilenet_v2"),
            **untrained,
        ),
        Workload("vit_b", "ViT-B/16 (random weights)", net="vit", make=_images("vit"), metric="cosine", **untrained),
        Workload(
            "bert_base", "BERT-base, 128 tokens (random weights)", source="random_rows", make=_tokens,
            metric="cosine", **text,
        ),
        Workload(
            "decoder", "Llama-like decoder, 102 M, one step after 64 tokens (random weights)", kind="decoder",
            net="decoder", input_names=("token", "cache"), source="random_rows", make=_decoding, metric="cosine",
        ),
    ]  # fmt: skip


# Sources import their data's packages only when a workload is prepared.


def _solar(test_rows: int) -> Material:
    from hasten_bench.data.solar import make

    return make(test_rows)


def _sentences(test_rows: int) -> Material:
    from hasten_bench.data.sentences import make

    return make(test_rows)


def _cifar(depth: int, test_rows: int) -> Material:
    from hasten_bench.data.cifar import make

    return make(depth, test_rows)


def _digits(test_rows: int) -> Material:
    from hasten_bench.data.handwriting import make

    return make(test_rows)


def _images(net: str) -> Callable[[int], Material]:
    def make(test_rows: int) -> Material:
        from hasten_bench.data.random_rows import images

        return images(_network(net))

    return make


def _tokens(test_rows: int) -> Material:
    from hasten_bench.data.random_rows import tokens

    return tokens(_network("bert"), 128)


def _decoding(test_rows: int) -> Material:
    from hasten_bench.data.random_rows import decoding

    return decoding(_network("decoder"), (2, 11, 12, 64, 64), 16000)


def _network(net: str) -> Callable[..., Any]:
    import importlib

    network: Callable[..., Any] = importlib.import_module(f"hasten_bench.nets.{net}").network
    return network


def _minilm_options() -> dict[str, Any]:
    return {"width": 384, "depth": 6, "heads": 12}
