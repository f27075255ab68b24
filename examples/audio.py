"""Audio: which of eight notes sounds in a noisy second, told by one-dimensional convolutions over the raw waveform.

The recordings are made here: a note with random overtones, phase and loudness in white noise, at 4 kHz.

Run it: hasten run examples/audio.py --max-drop 1%
"""

import math

import torch
from torch import Tensor, nn

import hasten

RATE = 4000
NOTES_HZ = (262, 294, 330, 349, 392, 440, 494, 523)


def recordings(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Waveforms [count, 1, 2000], half a second each, and notes [count]."""
    random = torch.Generator().manual_seed(seed)
    notes = torch.randint(0, len(NOTES_HZ), (count,), generator=random)
    time = torch.arange(RATE // 2) / RATE
    waves = torch.zeros(count, len(time))
    for overtone in (1, 2, 3):
        phase = 2 * math.pi * torch.rand(count, 1, generator=random)
        loudness = torch.rand(count, 1, generator=random) / overtone + 0.2
        waves += loudness * torch.sin(2 * math.pi * overtone * torch.tensor(NOTES_HZ)[notes, None] * time + phase)
    return (waves + torch.randn(waves.shape, generator=random))[:, None], notes


def network() -> nn.Module:
    layers: list[nn.Module] = []
    width = 1
    for wider, kernel, stride in ((32, 64, 8), (48, 9, 4), (64, 5, 2)):
        layers += [nn.Conv1d(width, wider, kernel, stride), nn.BatchNorm1d(wider), nn.ReLU()]
        width = wider
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, len(NOTES_HZ)))


def train(model: nn.Module, waves: Tensor, notes: Tensor, epochs: int = 6) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(notes), generator=generator).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(waves[rows]), notes[rows]).backward()
            optimizer.step()
    return model.eval()


def task() -> hasten.Task:
    torch.manual_seed(0)
    waves, notes = recordings(1500, seed=0)
    held, truth = recordings(1200, seed=1)
    return hasten.Task(
        model=train(network(), waves, notes),
        example=(held[:8],),
        holdout=list(zip(held.split(64), truth.split(64), strict=True)),
        train=list(zip(waves.split(64), notes.split(64), strict=True)),
        name="audio",
    )
