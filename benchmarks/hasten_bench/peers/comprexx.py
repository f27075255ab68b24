"""comprexx: its pipeline of structured pruning and static quantization, exported by its own ONNX exporter."""

REQUIREMENTS = ("comprexx==0.3.0", "onnx==1.23.2", "onnxruntime==1.32.0", "onnxscript==0.7.2")
TITLE = "comprexx"


def prune_30(job):
    import comprexx as cx

    return _run(job, [cx.stages.StructuredPruning(sparsity=0.3, criteria="l1_norm")])


def fuse(job):
    import comprexx as cx

    return _run(job, [cx.stages.OperatorFusion()])


def static_int8(job):
    import comprexx as cx

    return _run(job, [cx.stages.PTQStatic()])


def _run(job, stages):
    import comprexx as cx

    shape = (1, *job.about["inputs"][0]["shape"])
    rows = [batch[0] for batch in job.tensors("calibration")]
    result = cx.Pipeline(stages).run(job.network(), input_shape=shape, calibration_data=rows)
    cx.ONNXExporter().export(result.model, input_shape=shape, output_path=str(job.out / "model.onnx"))
    return {"target": "onnxruntime"}


VARIANTS = {"fuse": fuse, "prune_30": prune_30, "static_int8": static_int8}
KINDS = {"fuse": ("image",), "prune_30": ("image",), "static_int8": ("image",)}
