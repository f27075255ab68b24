"""Networks over sequences written by hand, each for one way in which channels can depend on each other."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Build = Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]


class Gated(nn.Module):
    """Gated linear unit by `glu`, by `chunk`, and by `split`."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(10, 24), nn.Linear(12, 16), nn.Linear(8, 18), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.a(x))
        left, right = self.b(x).chunk(2, -1)
        p, q = self.c(left * right.sigmoid()).split([9, 9], -1)
        return self.d(p * F.silu(q))


class Recurrent(nn.Module):
    def __init__(self, cell: str, both: bool = False, layers: int = 1) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.rnn = getattr(nn, cell)(8, 10, layers, batch_first=True, bidirectional=both)
        self.head = nn.Linear(20 if both else 10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(torch.relu(self.embed(x)))[0][:, -1])


class ConvGru(nn.Module):
    """Convolutions over a signal, then a GRU: keyword spotting."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.gru, self.fc = (
            nn.Conv1d(4, 8, 5, 2),
            nn.BatchNorm1d(8),
            nn.GRU(8, 6, batch_first=True),
            nn.Linear(6, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x))).transpose(1, 2)
        return self.fc(self.gru(x)[0].mean(1))


class RootMeanSquare(nn.Module):
    """A residual stream through RMSNorm: built in without an epsilon, with one, and written out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 12), nn.Linear(12, 4)
        self.first, self.second = nn.RMSNorm(12), nn.RMSNorm(12, eps=0.1, elementwise_affine=False)
        self.a, self.b, self.c = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.scale = nn.Parameter(torch.ones(12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.a(self.first(x))
        x = x + self.b(self.second(x))
        x = x + self.c(self.scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.1)))
        return self.head(x) + x.mean((1, 2), keepdim=True)


class TorchEncoder(nn.Module):
    """nn.TransformerEncoderLayer, training path."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 12)
        self.layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, activation="gelu")
        self.out = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(self.inner(x)).mean(1))


class TorchDecoder(nn.Module):
    """nn.TransformerDecoderLayer with learned queries: attention across two sequences, batch not first."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.query = nn.Linear(6, 12), nn.Parameter(torch.randn(5, 1, 12))
        self.layer, self.out = nn.TransformerDecoderLayer(12, 3, 20), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        memory = self.inner(x).transpose(0, 1)
        query = self.query.expand(5, x.shape[0], 12)
        return self.out(self.layer(query, memory)).transpose(0, 1)


class FusedAttention(nn.Module):
    """ViT attention with one qkv projection, einsum scores, and a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.cls = nn.Conv2d(3, 16, 8, 8), nn.Parameter(torch.randn(1, 1, 16))
        self.position, self.norm = nn.Parameter(torch.randn(1, 17, 16)), nn.LayerNorm(16)
        self.qkv, self.project, self.fc = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.position
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, 4, d // 4).permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.einsum("nhqd,nhkd->nhqk", q, k).mul(0.5).softmax(-1)
        x = x + self.project(torch.einsum("nhqk,nhkd->nqhd", weights, v).reshape(n, t, d))
        return self.fc(x[:, 0])


class LinearAttention(nn.Module):
    """Kernel feature maps instead of softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (f(x).view(n, t, 3, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        context = k.transpose(-1, -2) @ v
        scale = 1 / (q * k.sum(2, keepdim=True)).sum(-1, keepdim=True)
        return self.out(((q @ context) * scale).transpose(1, 2).reshape(n, t, 12))


class Mixer(nn.Module):
    """MLP-Mixer: linear layers over tokens and over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.n1, self.n2 = nn.Conv2d(3, 12, 8, 8), nn.LayerNorm(12), nn.LayerNorm(12)
        self.t1, self.t2, self.c1, self.c2, self.fc = (
            nn.Linear(16, 10),
            nn.Linear(10, 16),
            nn.Linear(12, 20),
            nn.Linear(20, 12),
            nn.Linear(12, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.t2(F.gelu(self.t1(self.n1(x).transpose(1, 2)))).transpose(1, 2)
        return self.fc((x + self.c2(F.gelu(self.c1(self.n2(x))))).mean(1))


class Tied(nn.Module):
    """One embedding at both ends, one layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.again, self.up, self.down = (
            nn.Embedding(20, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 14),
            nn.Linear(14, 8),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = self.again(torch.relu(self.again(x)))
        return F.linear(x + self.down(torch.relu(self.up(x))), self.embed.weight)


class WeightNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        wrap = nn.utils.parametrizations.weight_norm
        self.a, self.b, self.fc = wrap(nn.Conv1d(4, 10, 3)), wrap(nn.Conv1d(10, 8, 3, dilation=2)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.leaky_relu(self.b(F.leaky_relu(self.a(x)))).mean(-1))


class Unknown(nn.Module):
    """An operator without a rule in the middle: what meets it stays, the rest can be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(8, 10), nn.Linear(10, 12), nn.Linear(12, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(torch.relu(self.a(x)))
        x = torch.renorm(x, 2, 0, 100.0)
        return self.d(torch.relu(self.c(x)))


def _image(model: Callable[[], nn.Module], size: int = 16, channels: int = 3) -> Build:
    return lambda: (model(), (torch.randn(2, channels, size, size),))


def _of(model: Callable[[], nn.Module], *shape: int) -> Build:
    return lambda: (model(), (torch.randn(2, *shape),))


ZOO: dict[str, Build] = {
    "gated-mlp": _of(Gated, 10),
    "gru": _of(lambda: Recurrent("GRU"), 7, 6),
    "gru-both-ways": _of(lambda: Recurrent("GRU", both=True, layers=2), 7, 6),
    "lstm": _of(lambda: Recurrent("LSTM", layers=2), 7, 6),
    "conv-gru": _of(ConvGru, 4, 32),
    "root-mean-square": _of(RootMeanSquare, 5, 6),
    "torch-encoder": _of(TorchEncoder, 7, 6),
    "torch-decoder": _of(TorchDecoder, 7, 6),
    "fused-attention": _image(FusedAttention, 32),
    "linear-attention": _of(LinearAttention, 7, 8),
    "mlp-mixer": _image(Mixer, 32),
    "tied-embedding": lambda: (Tied(), (torch.randint(0, 20, (2, 6)),)),
    "weight-norm": _of(WeightNormed, 4, 20),
    "unknown-operator": _of(Unknown, 8),
}
