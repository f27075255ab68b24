"""Which operators a stored graph may call: those of inference that check their arguments.

A graph may come from a stranger, and not every operator of ATen is safe with arguments of a stranger's choice: some
read files, and many that only other operators call - backward passes, sparse tensors from unchecked indices, weights
packed by somebody else - write wherever an index says. A captured network calls none of those, so the same rule holds
for writing and for reading.
"""

import re
from typing import Any

# Libraries whose operators a graph may call, and the module that registers them.
LIBRARIES = {
    "aten": "torch",
    "quantized_decomposed": "torch.ao.quantization.fx._decomposed",
    "torchao": "torchao.quantization.pt2e.quantize_pt2e",
}
# Backward passes take indices that their forward passes made, and believe them; so do kernels of sparse, nested and
# packed tensors. Vendors' kernels are called by others, which have checked their arguments.
_REFUSED_WORDS = frozenset(
    {
        "backward", "coalesce", "cudnn", "fbgemm", "hspmm", "jagged", "jvp", "mkldnn", "miopen", "mps", "nested",
        "packed", "prepack", "quantized", "resize", "smm", "sparse", "sspaddmm", "strided", "permuted", "vulkan",
    }
)  # fmt: skip
_REFUSED = frozenset(
    {
        "ccol_indices", "col_indices", "crow_indices", "ctc_loss", "from_file", "indices", "output_nr", "record_stream",
        "retain_grad", "retains_grad", "row_indices", "segment_reduce", "set", "set_", "set_data", "values",
    }
)  # fmt: skip
_STRIDED = frozenset({"as_strided", "as_strided_", "as_strided_copy", "as_strided_scatter"})  # these check their bounds
# Of the names with an underscore, which are for ATen's own use, those that a captured graph may have.
_INNER = re.compile(
    r"__\w+__|_adaptive_avg_pool[23]d|_add_relu_?|_addmm_activation|_aminmax|_(functional_)?assert_\w+|_cast_\w+"
    r"|_batch_norm_no_update|_cdist_forward|_conj(_physical)?|_convolution(_mode)?|_dim_arange|_euclidean_dist|_fft_\w+"
    r"|_(functional_)?sym_constrain\w*|_fused_rms_norm|_grouped_mm|_int_mm|_is_a(ll|ny)_true|_local_scalar_dense"
    r"|_(log|safe|masked)?_?softmax|_native_batch_norm_legit\w*|_native_multi_head_attention|_neg_view|_pad_\w+"
    r"|_pdist_forward|_prelu_kernel|_reshape_(alias|copy|from_tensor)|_scaled_(grouped_)?mm\w*"
    r"|_scaled_dot_product_\w+|_shape_as_tensor|_stack|_to_copy|_transform_bias_rescale_qkv|_transformer_encoder_layer_fwd"
    r"|_trilinear|_unsafe_(index|view|masked_index)|_upsample_\w+|_weight_norm(_interface)?|_weight_int8pack_mm"
)
_AFFINE = re.compile(r"(choose_qparams|quantize|dequantize|fake_quantize)_affine\w*")
# Operators that call graphs of their own; others call compiled code, or assembler that stands in the graph.
HIGHER_ORDER = frozenset(
    {
        "associative_scan", "cond", "flex_attention", "map_impl", "out_dtype", "scan", "while_loop",
        "wrap_with_autocast", "wrap_with_set_grad_enabled",
    }
)  # fmt: skip
# Memory as it was left would show a stranger's graph what else the process has held.
_INSTEAD = {
    "aten.empty.memory_format": "aten.zeros.default",
    "aten.empty_like.default": "aten.zeros_like.default",
    "aten.new_empty.default": "aten.new_zeros.default",
}


def is_storable(library: str, operator: str) -> bool:
    """Whether a stored graph may call `operator`, such as `conv2d`, of a library such as `aten`."""
    if library == "torchao":
        return _AFFINE.fullmatch(operator) is not None
    if library != "aten":
        return library in LIBRARIES
    if operator.startswith("_") and _INNER.fullmatch(operator) is None:
        return False
    words = set(operator.split("_"))
    return operator in _STRIDED or (operator not in _REFUSED and not words & _REFUSED_WORDS)


def without_leftovers(name: str, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The operator to call instead of one that gives memory as it was left, and its keyword arguments."""
    if name not in _INSTEAD:
        return name, arguments
    if name == "aten.empty.memory_format":  # `zeros` has no such argument
        arguments = {key: value for key, value in arguments.items() if key != "memory_format"}
    return _INSTEAD[name], arguments
