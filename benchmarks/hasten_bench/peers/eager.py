"""PyTorch eager: the network as it was handed over. The baseline that every ratio is taken against."""

REQUIREMENTS = ()
TITLE = "PyTorch eager"


def fp32(job):
    import torch

    program = torch.export.export(job.network(), _example(job), dynamic_shapes=_shapes(job), strict=False)
    torch.export.save(program, job.out / "model.pt2")
    return {"target": "eager"}


def _example(job):
    return job.example()


def _shapes(job):
    import torch

    return tuple({0: torch.export.Dim("batch", min=1)} for _ in job.about["inputs"])


VARIANTS = {"fp32": fp32}
KINDS = {"fp32": ("image", "text", "decoder")}
