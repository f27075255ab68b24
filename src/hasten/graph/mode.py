"""Train and eval mode of a captured graph: a rewrite of the flag that its operators carry as an argument."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

# How ATen names the flag: batch_norm and rrelu `training`, dropout and the recurrent layers `train`, instance_norm
# `use_input_stats`.
_FLAGS = ("training", "train", "use_input_stats")
_NORMS = ("batch_norm", "instance_norm")


def set_training(module: nn.Module, training: bool, *, freeze_batch_norm: bool = False) -> None:
    """Put `module` into train or eval mode, in place.

    In a captured graph the train flag of batch norm, instance norm with running statistics, every dropout and the
    recurrent layers is rewritten. Attention dropout is not: exported in eval mode, `scaled_dot_product_attention`
    has lost its rate. A plain module gets `module.train(training)`.

    Args:
        module: Captured graph, possibly with fake-quantizers inside, or any module.
        training: The mode.
        freeze_batch_norm: Keep batch norm in eval mode: it uses its running statistics and leaves them as they are.
    """
    if not isinstance(module, GraphModule):
        module.train(training)
        if freeze_batch_norm:
            for layer in module.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()
        return
    for graph in (m for m in module.modules() if isinstance(m, GraphModule)):
        for node in graph.graph.nodes:
            _set_flag(node, training and not (freeze_batch_norm and is_batch_norm(node)))
        graph.recompile()
    for child in module.modules():
        child.training = training


@contextmanager
def observers_paused(module: nn.Module) -> Iterator[None]:
    """Keep the fake-quantizers inside from learning their ranges from what is run meanwhile, e.g. validation data."""
    found: list[Any] = [m for m in module.modules() if hasattr(m, "disable_observer")]
    observing = [fake_quantizer for fake_quantizer in found if bool(fake_quantizer.observer_enabled[0])]
    for fake_quantizer in observing:
        fake_quantizer.disable_observer()
    try:
        yield
    finally:
        for fake_quantizer in observing:
            fake_quantizer.enable_observer()


def is_batch_norm(node: Node) -> bool:
    """Whether `node` normalises over the batch (any of ATen's batch norm operators)."""
    return isinstance(node.target, OpOverload) and "batch_norm" in node.target._schema.name


def _set_flag(node: Node, training: bool) -> None:
    if not isinstance(node.target, OpOverload):
        return
    names = [argument.name for argument in node.target._schema.arguments]
    flag = next((name for name in _FLAGS if name in names), None)
    if flag is None or (_is_norm(node.target) and not _has_running_statistics(node, names)):
        return
    index = names.index(flag)
    if index < len(node.args):
        node.update_arg(index, training)
    elif training:
        node.update_kwarg(flag, True)
    else:  # False is the default, which capture leaves out
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != flag}


def _is_norm(target: OpOverload) -> bool:
    return any(norm in target._schema.name for norm in _NORMS)


def _has_running_statistics(node: Node, names: list[str]) -> bool:
    """Without running statistics a norm uses those of its input in both modes."""
    if "running_mean" not in names:
        return False
    index = names.index("running_mean")
    value = node.args[index] if index < len(node.args) else node.kwargs.get("running_mean")
    return value is not None
