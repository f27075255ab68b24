"""One decoding step of a Llama-like decoder (Touvron et al. 2023): RMS norm, rotary positions, SwiGLU, cached keys.

The cache is an input, so the step is a pure function that every runtime can run; the default has 101 M parameters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = Norm(width), Norm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, _, width = x.shape
        y = self.norm1(x)
        q, k, v = (
            part(y).view(batch, 1, self.heads, width // self.heads).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, torch.cat([keys, k], 2), torch.cat([values, v], 2))
        x = x + self.out(y.transpose(1, 2).reshape(batch, 1, width))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class DecodingStep(nn.Module):
    """Token [n, 1] int64 and cache [n, 2, depth, heads, cached, width / heads] to logits [n, vocabulary]."""

    def __init__(self, vocabulary: int, width: int, depth: int, heads: int, hidden: int, cached: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Layer(width, heads, hidden) for _ in range(depth))
        self.norm = Norm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        size = width // heads
        angles = cached / 10000 ** (torch.arange(0, size, 2) / size)
        self.register_buffer("cos", torch.cat([angles, angles]).cos())
        self.register_buffer("sin", torch.cat([angles, angles]).sin())

    def forward(self, token: Tensor, cache: Tensor) -> Tensor:
        x = self.embedding(token)
        for index, layer in enumerate(self.layers):
            x = layer(x, cache[:, 0, index], cache[:, 1, index], self.cos, self.sin)
        return self.head(self.norm(x[:, 0]))


def network(
    vocabulary: int = 16000, width: int = 768, depth: int = 11, heads: int = 12, hidden: int = 2048, cached: int = 64
) -> nn.Module:
    return DecodingStep(vocabulary, width, depth, heads, hidden, cached)
