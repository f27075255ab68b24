"""torch-pruning: filters removed by L2 norm of their group, fine-tuned, run by ONNX Runtime; also in int8."""

REQUIREMENTS = ("torch-pruning==1.6.1", "onnx==1.23.2", "onnxruntime==1.32.0", "onnxscript==0.7.2")
TITLE = "torch-pruning + ONNX Runtime"


def prune_30(job):
    model = _pruned(job, 0.3)
    job.export_onnx(model, job.out / "model.onnx")
    return {"target": "onnxruntime"}


def prune_30_static_int8(job):
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    pruned, prepared = job.out.parent / "pruned.onnx", job.out.parent / "prepared.onnx"
    job.export_onnx(_pruned(job, 0.3), pruned)
    quant_pre_process(pruned, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared, job.out / "model.onnx", _Reader(job), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return {"target": "onnxruntime"}


def _pruned(job, ratio):
    import torch_pruning as tp

    model = job.network().requires_grad_(True)
    pruner = tp.pruner.BasePruner(
        model, job.example(), importance=tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=ratio,
        ignored_layers=_kept_whole(model), round_to=8,
    )  # fmt: skip
    pruner.step()
    if job.about["trained"]:
        _fine_tune(job, model)
    return model.eval()


def _kept_whole(model):
    """The last layer; with shortcuts that pad channels, which torch-pruning does not follow, the whole stream."""
    import torch

    kept = [[m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]]
    if any(getattr(m, "grows", False) for m in model.modules()):
        kept += [m for name, m in model.named_modules() if name == "conv1" or name.endswith(".conv2")]
    return kept


def _fine_tune(job, model):
    import time

    import torch

    end = time.monotonic() + 60 * job.minutes
    batches = job.tensors("train", batch=32)
    steps = 3 * len(batches)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for step in range(steps):
        if time.monotonic() > end:
            break
        x, y = batches[step % len(batches)]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        schedule.step()


class _Reader:
    """Calibration rows one by one."""

    def __init__(self, job):
        self.feeds = job.feeds()

    def get_next(self):
        return next(self.feeds, None)


VARIANTS = {"prune_30": prune_30, "prune_30_static_int8": prune_30_static_int8}
KINDS = {"prune_30": ("image",), "prune_30_static_int8": ("image",)}
SLOW = ("prune_30",)
BUDGETED = ("prune_30", "prune_30_static_int8")
