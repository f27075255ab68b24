"""The ATen operators that have a weight and multiply by it: everything that prunes or rounds weights asks here."""

import torch

aten = torch.ops.aten

CONVOLUTIONS = frozenset({aten.conv1d.default, aten.conv2d.default, aten.conv3d.default})
LAYERS = CONVOLUTIONS | {aten.linear.default}
