"""Operators over space: pooling, resizing, sampling. Batch and channels pass, spatial dimensions stay as they are."""

from hasten.graph.rules.call import Axes, Call, Result, Rule, shapes_of


def spatial(dimensions: int) -> Rule:
    """The rule of an operator that works on the last `dimensions` of its first argument."""

    def rule(call: Call) -> Result:
        x = call.tensors()[0]
        lead = x[: len(x) - dimensions]
        call.freeze(x[len(x) - dimensions :])
        axes: Axes = (*lead, *(call.fixed(d) for d in range(-dimensions, 0)))
        many = isinstance(call.node.meta.get("val"), (tuple, list))
        return [axes] * len(shapes_of(call.node)) if many else axes

    return rule


def grid_sampler(call: Call) -> Axes:
    """[N, C, ...] sampled at the places of a grid."""
    x, grid = call.axes("input"), call.axes("grid")
    call.freeze([*x[2:], *grid[1:]])
    call.tie(x[0], grid[0])
    return (*x[:2], *(call.fixed(d) for d in range(2, len(x))))


def im2col(call: Call) -> Axes:
    """[N, C, H, W] -> [N, C * kernel size, places]."""
    x, kernel = call.axes("self"), call["kernel_size"]
    call.freeze(x[2:])
    taps = call.relations.frozen(int(kernel[0]) * int(kernel[1]), "it is not a channel dimension")
    return (x[0], call.relations.merge([x[1], taps]), call.fixed(2))


def col2im(call: Call) -> Axes:
    """[N, C * kernel size, places] -> [N, C, H, W]."""
    x, kernel = call.axes("self"), call["kernel_size"]
    taps = int(kernel[0]) * int(kernel[1])
    call.freeze(x[2:])
    channels, inner = call.relations.split(x[1], [x[1].size // taps, taps])
    call.freeze([inner])
    return (x[0], channels, call.fixed(2), call.fixed(3))


def unfold(call: Call) -> Axes:
    """Sliding windows of one dimension, which stays as it is; the window becomes the last dimension."""
    x = list(call.axes("self"))
    d = call["dimension"] % len(x)
    call.freeze([x[d]])
    x[d] = call.fixed(d)
    return (*x, call.fixed(-1))


_FAMILIES = {
    1: "avg_pool1d max_pool1d max_pool1d_with_indices adaptive_avg_pool1d adaptive_max_pool1d "
    "upsample_nearest1d upsample_linear1d _upsample_nearest_exact1d reflection_pad1d replication_pad1d",
    2: "avg_pool2d max_pool2d max_pool2d_with_indices adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d "
    "fractional_max_pool2d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad2d replication_pad2d",
    3: "avg_pool3d max_pool3d max_pool3d_with_indices adaptive_avg_pool3d adaptive_max_pool3d "
    "upsample_nearest3d upsample_trilinear3d _upsample_nearest_exact3d reflection_pad3d replication_pad3d",
}

RULES: dict[str, Rule] = {name: spatial(d) for d, names in _FAMILIES.items() for name in names.split()} | {
    "grid_sampler": grid_sampler,
    "im2col": im2col,
    "col2im": col2im,
    "unfold": unfold,
}
