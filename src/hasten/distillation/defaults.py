"""What a distillation uses where nothing is asked for: optimizer and peak learning rate."""

from typing import Literal

import torch
from torch.fx import GraphModule


def usual_optimizer(graph: GraphModule) -> Literal["sgd", "adamw"]:
    """`adamw` for networks with layer norm, else `sgd`."""
    targets = {node.target for node in graph.graph.nodes}
    return "adamw" if torch.ops.aten.layer_norm.default in targets else "sgd"


def usual_rate(optimizer: str, freeze_batch_norm: bool) -> float:
    """Peak learning rate.

    Batch norm on statistics of the batch makes a layer's output independent of the scale of its weights, which allows
    higher rates (Ioffe and Szegedy 2015, section 3.3); where it is frozen, it does not.
    """
    if optimizer == "adamw":
        return 1e-4
    return 0.003 if freeze_batch_norm else 0.01
