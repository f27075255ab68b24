"""NVIDIA Model Optimizer, what of it runs on a CPU: int8 Q/DQ for ONNX, and pruning by FastNAS."""

REQUIREMENTS = (
    "nvidia-modelopt[onnx]==0.47.0", "requests==2.32.5", "tqdm==4.70.1", "onnxscript==0.7.2",
    "huggingface_hub==0.36.2", "torchprofile==0.1.0",
)  # fmt: skip
TITLE = "NVIDIA Model Optimizer"


def onnx_int8(job):
    import numpy as np
    from modelopt.onnx.quantization import quantize

    names = [x["name"] for x in job.about["inputs"]]
    data = {name: np.ascontiguousarray(x) for name, x in zip(names, job.arrays("calibration"), strict=True)}
    quantize(
        str(job.onnx), quantize_mode="int8", calibration_data=data, calibration_eps=["cpu"],
        high_precision_dtype="fp32", mha_accumulation_dtype="fp32", output_path=str(job.out / "model.onnx"),
    )  # fmt: skip
    return {"target": "onnxruntime"}


def prune_fastnas(job):
    import modelopt.torch.prune as mtp
    import torch

    validation = job.tensors("validation", batch=64)[:5]

    def score(model):
        model.eval()
        with torch.no_grad():
            right = [job.score(model(x).numpy(), y.numpy()).mean() for x, y in validation]
        return float(sum(right) / len(right))

    config = {"data_loader": job.tensors("train", batch=32), "score_func": score, "max_iter_data_loader": 20,
              "collect_func": lambda batch: batch[0], "checkpoint": str(job.out.parent / "search.pth")}  # fmt: skip
    pruned, _ = mtp.prune(
        job.network(), mode="fastnas", constraints={"flops": "75%"}, dummy_input=job.example(), config=config
    )
    job.export_onnx(pruned, job.out / "model.onnx")
    return {"target": "onnxruntime"}


VARIANTS = {"onnx_int8": onnx_int8, "prune_fastnas": prune_fastnas}
KINDS = {"onnx_int8": ("image", "text"), "prune_fastnas": ("image",)}
NEEDS_TRAINING = ("prune_fastnas",)
SLOW = ("prune_fastnas",)
