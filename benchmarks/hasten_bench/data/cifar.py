"""CIFAR-10 and the published CIFAR ResNets, fine-tuned on the JPEG-compressed images that stand here for CIFAR-10.

45,000 training images fine-tune, 5,000 are for the tools to judge themselves by, and the 10,000 test images are
for the harness alone.
"""

import io
import itertools

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hasten_bench.material import Material, Part, cache, shared_data
from hasten_bench.nets.cifar_resnet import network

MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
STD = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]
VALIDATION = 5000
CALIBRATION = 300
EPOCHS = 2


def make(depth: int, test_rows: int) -> Material:
    """The ResNet of `depth` layers with its rows."""
    images, labels = decode("cifar10_train.npz")
    test_images, test_labels = decode("cifar10_test.npz")
    training = Part((images[:-VALIDATION],), labels[:-VALIDATION])
    return Material(
        weights=fine_tuned(depth, training),
        calibration=Part((images[:CALIBRATION],)),
        validation=Part((images[-VALIDATION:],), labels[-VALIDATION:]),
        train=training,
        test=Part((test_images[:test_rows],), test_labels[:test_rows]),
    )


def decode(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Normalised images [n, 3, 32, 32] float32 and labels [n] int64."""
    with np.load(shared_data(name)) as archive:
        jpeg, offset, label = archive["jpeg"].tobytes(), archive["offset"], archive["label"]
    pixels = np.stack([
        np.asarray(Image.open(io.BytesIO(jpeg[start:end])))
        for start, end in itertools.pairwise(offset)
    ])  # fmt: skip
    images = (pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255 - MEAN) / STD
    return images, label.astype(np.int64)


def fine_tuned(depth: int, training: Part) -> dict[str, Tensor]:
    """The published weights after `EPOCHS` epochs on these images; kept in the cache folder.

    Weights that lie there already are used as they are, whoever fine-tuned them.
    """
    kept = cache() / "cifar" / f"resnet{depth}.safetensors"
    if not kept.exists():
        model = network(depth)
        model.load_state_dict(load_file(shared_data(f"resnet{depth}_cifar10.safetensors")))
        fine_tune(model, training)
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), kept)
    return load_file(kept)


def fine_tune(model: nn.Module, training: Part, batch: int = 128) -> None:
    """SGD with momentum, cosine schedule, flips and shifts by up to four pixels."""
    images, labels = torch.from_numpy(training.inputs[0]), torch.from_numpy(training.target)
    generator = torch.Generator().manual_seed(0)
    steps = EPOCHS * -(-len(labels) // batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=steps, pct_start=0.1)
    model.train().to(memory_format=torch.channels_last)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels), generator=generator).split(batch):
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(model(augment(images[rows], generator)), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval().to(memory_format=torch.contiguous_format)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """The batch shifted as one by up to four pixels, half of it mirrored."""
    down, right = (int(torch.randint(0, 9, (), generator=generator)) for _ in range(2))
    padded = nn.functional.pad(images, (4, 4, 4, 4))[:, :, down : down + 32, right : right + 32]
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], padded.flip(3), padded).contiguous(
        memory_format=torch.channels_last
    )
