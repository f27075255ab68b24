"""Olive: static int8 (on transformers after its graph optimisation) and int4 weights (RTN), run by ONNX Runtime."""

REQUIREMENTS = ("olive-ai==0.13.0", "onnxruntime==1.32.0", "onnxscript==0.7.2", "requests==2.32.5")
TITLE = "Olive"


def static_int8(job):
    import numpy as np
    import torch
    from olive.data.registry import Registry
    from torch.utils.data import Dataset

    class Rows(Dataset):
        def __init__(self):
            self.feeds = list(job.feeds())

        def __len__(self):
            return len(self.feeds)

        def __getitem__(self, index):
            return {k: torch.from_numpy(np.array(x[0])) for k, x in self.feeds[index].items()}, 0

    Registry.register_dataset("calibration_rows")(lambda **_: Rows())
    data = {"name": "rows", "type": "DataContainer", "load_dataset_config": {"type": "calibration_rows"}}
    passes = {"quantize": {"type": "OnnxStaticQuantization", "data_config": data, "quant_preprocess": True}}
    return _run(job, passes)


def weight_int4(job):
    return _run(job, {"quantize": {"type": "OnnxBlockWiseRtnQuantization", "block_size": 32}})


def _run(job, passes):
    import shutil

    from olive.workflows import run

    if job.about["kind"] == "text":
        passes = {"optimize": {"type": "OrtTransformersOptimization", "model_type": "bert"}, **passes}
    folder = job.out.parent / "olive"
    run({
        "input_model": {"type": "ONNXModel", "model_path": str(job.onnx)},
        "systems": {"here": {"type": "LocalSystem", "accelerators": [
            {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}]}},
        "target": "here", "passes": passes, "output_dir": str(folder), "cache_dir": str(job.out.parent / "cache"),
    })  # fmt: skip
    written = sorted(folder.rglob("*.onnx"))
    if not written:
        raise RuntimeError("the workflow wrote no model")
    for file in written[0].parent.iterdir():
        if file.suffix in (".onnx", ".data"):
            shutil.copy(file, job.out / ("model.onnx" if file.suffix == ".onnx" else file.name))
    return {"target": "onnxruntime"}


VARIANTS = {"static_int8": static_int8, "weight_int4": weight_int4}
KINDS = {"static_int8": ("image", "text"), "weight_int4": ("decoder",)}
