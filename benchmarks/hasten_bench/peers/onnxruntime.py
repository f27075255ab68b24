"""ONNX Runtime and the quantizers that come with it: static (QDQ, per channel), dynamic, and 4-bit weights."""

REQUIREMENTS = ()
TITLE = "ONNX Runtime"


def fp32(job):
    import shutil

    shutil.copy(job.onnx, job.out / "model.onnx")
    return {"target": "onnxruntime"}


def static_int8(job):
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = job.out.parent / "prepared.onnx"
    quant_pre_process(job.onnx, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared, job.out / "model.onnx", _Reader(job), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return {"target": "onnxruntime"}


def dynamic_int8(job):
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = job.out.parent / "prepared.onnx"
    quant_pre_process(job.onnx, prepared, skip_symbolic_shape=True)
    quantize_dynamic(prepared, job.out / "model.onnx", per_channel=True, weight_type=QuantType.QInt8)
    return {"target": "onnxruntime"}


def weight_int4(job):
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(job.onnx), bits=4, block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(job.out / "model.onnx"), use_external_data_format=False)
    return {"target": "onnxruntime"}


class _Reader:
    """Calibration rows one by one."""

    def __init__(self, job):
        self.feeds = job.feeds()

    def get_next(self):
        return next(self.feeds, None)


VARIANTS = {"fp32": fp32, "static_int8": static_int8, "dynamic_int8": dynamic_int8, "weight_int4": weight_int4}
KINDS = {
    "fp32": ("image", "text", "decoder"),
    "static_int8": ("image", "text"),
    "dynamic_int8": ("image", "text", "decoder"),
    "weight_int4": ("decoder",),
}
