"""Optimum ONNX: ONNX Runtime's quantizer with Hugging Face's presets for AVX-512 VNNI."""

REQUIREMENTS = ("optimum-onnx[onnxruntime]==0.1.0", "onnxruntime==1.32.0", "datasets==4.4.1")
TITLE = "Optimum"


def static_int8(job):
    from datasets import Dataset
    from optimum.onnxruntime.configuration import AutoCalibrationConfig, AutoQuantizationConfig

    rows = Dataset.from_generator(lambda: ({k: x[0] for k, x in feed.items()} for feed in job.feeds()))
    quantizer = _quantizer(job)
    config = AutoQuantizationConfig.avx512_vnni(is_static=True, per_channel=True)
    ranges = quantizer.fit(
        dataset=rows, calibration_config=AutoCalibrationConfig.minmax(rows),
        operators_to_quantize=config.operators_to_quantize,
    )  # fmt: skip
    quantizer.quantize(config, job.out.parent, calibration_tensors_range=ranges, file_suffix="quantized")
    return _done(job)


def dynamic_int8(job):
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    _quantizer(job).quantize(config, job.out.parent, file_suffix="quantized")
    return _done(job)


def _quantizer(job):
    from optimum.onnxruntime import ORTQuantizer

    return ORTQuantizer(job.onnx)


def _done(job):
    import shutil

    shutil.move(job.out.parent / "model_quantized.onnx", job.out / "model.onnx")
    return {"target": "onnxruntime"}


VARIANTS = {"static_int8": static_int8, "dynamic_int8": dynamic_int8}
KINDS = {"static_int8": ("image", "text"), "dynamic_int8": ("text",)}
