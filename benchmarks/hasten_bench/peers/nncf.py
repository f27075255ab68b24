"""NNCF with OpenVINO: bf16 as OpenVINO does by itself, int8, int8 with accuracy control, weight-only int8 and int4."""

REQUIREMENTS = ("nncf==3.4.0", "openvino==2026.4.1", "onnx==1.23.2")
TITLE = "NNCF + OpenVINO"


def fp32(job):
    return _save(job, _read(job))


def bf16(job):
    return _save(job, _read(job), precision="bf16")


def int8(job):
    import nncf

    preset = nncf.QuantizationPreset.MIXED
    return _save(job, nncf.quantize(_read(job), _dataset(job), preset=preset, model_type=_model_type(job)))


def int8_accuracy_control(job):
    import nncf

    targets = job.targets("validation")

    def validate(compiled, items):
        outputs = [compiled(feed)[compiled.output(0)][0] for feed in items]
        if job.about["metric"] == "spearman":
            return job.rank_correlation(_stack(outputs), targets[: len(outputs)]), None
        values = job.score(_stack(outputs), targets[: len(outputs)])
        return float(values.mean()), values.tolist()

    model = nncf.quantize_with_accuracy_control(
        _read(job), _dataset(job), nncf.Dataset(list(job.feeds("validation"))), validate,
        max_drop=job.about["max_drop"], drop_type=nncf.DropType.ABSOLUTE, model_type=_model_type(job),
    )  # fmt: skip
    return _save(job, model)


def weight_int4(job):
    import nncf

    mode = nncf.CompressWeightsMode.INT4_SYM
    return _save(job, nncf.compress_weights(_read(job), mode=mode, group_size=32, ratio=1.0))


def weight_int8(job):
    import nncf

    return _save(job, nncf.compress_weights(_read(job), mode=nncf.CompressWeightsMode.INT8_SYM))


def _read(job):
    import openvino as ov

    return ov.convert_model(job.onnx)


def _dataset(job):
    import nncf

    return nncf.Dataset(list(job.feeds("calibration")))


def _model_type(job):
    import nncf

    return (
        None
        if job.about["name"].startswith(("resnet", "mobilenet", "efficientnet", "digits"))
        else (nncf.ModelType.TRANSFORMER)
    )


def _stack(rows):
    import numpy as np

    return np.stack(rows)


def _save(job, model, precision="fp32"):
    import openvino as ov

    ov.save_model(model, job.out / "model.xml", compress_to_fp16=False)
    return {"target": "openvino", "options": {"precision": precision}}


VARIANTS = {
    "fp32": fp32,
    "bf16": bf16,
    "int8": int8,
    "int8_accuracy_control": int8_accuracy_control,
    "weight_int8": weight_int8,
    "weight_int4": weight_int4,
}
KINDS = {
    "fp32": ("image", "text", "decoder"),
    "bf16": ("image", "text", "decoder"),
    "int8": ("image", "text"),
    "int8_accuracy_control": ("image", "text"),
    "weight_int8": ("decoder",),
    "weight_int4": ("decoder",),
}
NEEDS_VALIDATION = ("int8_accuracy_control",)
SLOW = ("int8_accuracy_control",)
