"""torchdistill: a student, the network pruned by 30%, taught by the original's logits (Hinton et al. 2015)."""

REQUIREMENTS = ("torchdistill==1.1.5", "torch-pruning==1.6.1", "onnx==1.23.2", "onnxscript==0.7.2")
TITLE = "torchdistill (student pruned by torch-pruning)"
CRITERION = {
    "key": "WeightedSumLoss",
    "kwargs": {
        "sub_terms": {
            "kd": {
                "criterion": {
                    "key": "KDLoss",
                    "kwargs": {
                        "student_module_path": ".", "student_module_io": "output",
                        "teacher_module_path": ".", "teacher_module_io": "output",
                        "temperature": 4.0, "alpha": 0.5, "reduction": "batchmean",
                    },
                },
                "weight": 1.0,
            }
        }
    },
}  # fmt: skip


def distill_30(job):
    job.declare_torchvision()
    import time

    import torch
    from torchdistill.core.distillation import get_distillation_box

    end = time.monotonic() + 60 * job.minutes
    rows = torch.utils.data.TensorDataset(*(torch.cat(x) for x in zip(*job.tensors("train", 256), strict=True)))
    sampler = {"class_or_func": torch.utils.data.RandomSampler}
    loader = {"dataset_id": "train", "sampler": sampler, "kwargs": {"batch_size": 32}}
    config = {
        "num_epochs": 3, "train_data_loader": loader, "val_data_loader": loader,
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.01, "momentum": 0.9}}, "criterion": CRITERION,
    }  # fmt: skip
    student = _pruned(job)
    box = get_distillation_box(job.network(), student, {"train": rows}, config, torch.device("cpu"), None, False, 1.0)
    for epoch in range(box.num_epochs):
        box.pre_epoch_process(epoch=epoch)
        for x, y, extra in box.train_data_loader:
            if time.monotonic() > end:
                break
            box.post_forward_process(box.forward_process(x, y, extra))
        box.post_epoch_process()
    job.export_onnx(box.student_model.eval(), job.out / "model.onnx")
    return {"target": "onnxruntime"}


def _pruned(job):
    import torch_pruning as tp

    model = job.network().requires_grad_(True)
    tp.pruner.BasePruner(
        model, job.example(), importance=tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=0.3,
        ignored_layers=_kept_whole(model), round_to=8,
    ).step()  # fmt: skip
    return model


def _kept_whole(model):
    """The last layer; with shortcuts that pad channels, which torch-pruning does not follow, the whole stream."""
    import torch

    kept = [[m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]]
    if any(getattr(m, "grows", False) for m in model.modules()):
        kept += [m for name, m in model.named_modules() if name == "conv1" or name.endswith(".conv2")]
    return kept


VARIANTS = {"distill_30": distill_30}
KINDS = {"distill_30": ("image",)}
NEEDS_TRAINING = ("distill_30",)
SLOW = ("distill_30",)
BUDGETED = ("distill_30",)
