"""fasterai: 30% of the filters pruned by norm in one step, without fine-tuning, run by ONNX Runtime."""

REQUIREMENTS = ("fasterai==0.4.1", "onnx==1.23.2", "onnxruntime==1.32.0", "onnxscript==0.7.2")
TITLE = "fasterai"


def prune_30(job):
    job.declare_torchvision()
    from fasterai.core.criteria import large_final
    from fasterai.prune.pruner import Pruner

    model = job.network().requires_grad_(True)
    Pruner(model, 0.3, "local", large_final, example_inputs=job.example()[0]).prune_model()
    job.export_onnx(model.eval(), job.out / "model.onnx")
    return {"target": "onnxruntime"}


VARIANTS = {"prune_30": prune_30}
KINDS = {"prune_30": ("image",)}
