import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.distillation.features import FeatureDistance, pair_by_depth, pair_last, reads_features
from hasten.errors import InvalidInput, Unsupported
from hasten.graph.capture import capture
from hasten.graph.taps import values


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.conv(x)))


def resnet(width: int, depth: int) -> nn.Module:
    stage = [Block(width) for _ in range(depth)]
    stage2 = [Block(width) for _ in range(depth)]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))
    return nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), *stage, nn.MaxPool2d(2), *stage2, head)


X = (torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)),)


def test_pairs_the_last_block_of_each_resolution() -> None:
    student, teacher = capture(resnet(4, 1), X), capture(resnet(8, 3), X)
    pairs = pair_by_depth(student, teacher, X)
    found = values(student, X), values(teacher, X)
    assert [tuple(found[0][s].shape[1:]) for s, _ in pairs] == [(4, 8, 8), (4, 4, 4)]
    assert [tuple(found[1][t].shape[1:]) for _, t in pairs] == [(8, 8, 8), (8, 4, 4)]
    # The ends of the teacher's third and sixth block: the first of its seven ReLUs belongs to the stem.
    assert [t for _, t in pairs] == ["relu_3", "relu_6"]


def test_pairs_by_relative_depth_without_images() -> None:
    def mlp(depth: int) -> nn.Module:
        layers = [layer for _ in range(depth) for layer in (nn.Linear(6, 6), nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(6, 2))

    x = (torch.randn(2, 6),)
    pairs = pair_by_depth(capture(mlp(2), x), capture(mlp(6), x), x)
    assert pairs == (("relu", "relu_2"), ("relu_1", "relu_5"))
    with pytest.raises(Unsupported, match="the student has no residual block and no activation"):
        pair_by_depth(capture(nn.Linear(6, 2), x), capture(mlp(1), x), x)


def test_the_last_pair_is_what_the_last_linear_layer_reads_before_dropout() -> None:
    def net(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, 3))

    x = (torch.randn(4, 6),)
    student, teacher = capture(net(4), x), capture(net(8), x)
    assert pair_last(student, teacher) == (("relu", "relu"),)
    assert [tuple(values(g, x)["relu"].shape) for g in (student, teacher)] == [(4, 4), (4, 8)]
    assert reads_features(teacher)
    assert not reads_features(capture(nn.Sequential(nn.ReLU(), nn.Linear(6, 9)), x)), "its answers say more"
    assert not reads_features(capture(nn.Linear(6, 3), x)), "it reads the input itself"
    with pytest.raises(Unsupported, match="must find a linear layer"):
        pair_last(capture(nn.ReLU(), x), teacher)


def test_hint_without_projection_is_the_relative_squared_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 5, 6, 6, generator=generator)
    distance = FeatureDistance([(student.shape, teacher.shape)], "hint")
    assert list(distance.parameters()) == []
    expected = (student - teacher).square().mean() / teacher.var(correction=0)
    torch.testing.assert_close(distance([student], [teacher]), expected)
    assert float(distance([teacher], [teacher])) == 0


@pytest.mark.parametrize(("small", "large"), [((4, 3, 8, 8), (4, 6, 4, 4)), ((4, 7, 3), (4, 7, 6)), ((4, 3), (4, 6))])
def test_learned_projection_can_close_the_distance(small: tuple[int, ...], large: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    student = torch.randn(*small)
    mix = torch.randn(large[1] if len(large) == 4 else large[-1], 3)
    pooled = F.adaptive_avg_pool2d(student, large[2:]) if len(large) == 4 else student
    teacher = torch.einsum("dc,nc...->nd...", mix, pooled) if len(large) == 4 else pooled @ mix.T
    distance = FeatureDistance([(student.shape, teacher.shape)], "hint")
    optimizer = torch.optim.Adam(distance.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        distance([student], [teacher]).backward()
        optimizer.step()
    assert float(distance([student], [teacher]).detach()) < 1e-2


def test_attention_needs_no_projection_and_ignores_the_width() -> None:
    student = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    teacher = torch.cat([student, student], 1)
    distance = FeatureDistance([(student.shape, teacher.shape)], "attention")
    assert list(distance.parameters()) == []
    assert float(distance([student], [teacher])) == pytest.approx(0, abs=1e-7)
    assert float(distance([student.flip(2)], [teacher])) > 0.01


def test_refuses_features_of_other_rank() -> None:
    with pytest.raises(InvalidInput, match="same number of dimensions"):
        FeatureDistance([(torch.Size([4, 3]), torch.Size([4, 3, 2]))], "hint")
    with pytest.raises(InvalidInput, match="same number of positions"):
        FeatureDistance([(torch.Size([4, 3]), torch.Size([4, 5]))], "attention")
