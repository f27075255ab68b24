"""torch.compile's compiler ahead of time: AOTInductor with max-autotune and frozen weights."""

REQUIREMENTS = ()
TITLE = "PyTorch AOTInductor, max-autotune"
OPTIONS = {"max_autotune": True, "freezing": True}


def fp32(job):
    return _compile(job, _export(job))


def bf16(job):
    import torch

    program = _export(job)
    with torch.autocast("cpu", torch.bfloat16):
        program = program.run_decompositions()
    return _compile(job, program)


def _export(job):
    import torch

    shapes = tuple({0: torch.export.Dim("batch", min=1)} for _ in job.about["inputs"])
    return torch.export.export(job.network(), job.example(), dynamic_shapes=shapes, strict=False)


def _compile(job, program):
    import torch
    from torch._inductor import aoti_compile_and_package

    with torch.no_grad():
        aoti_compile_and_package(program, package_path=str(job.out / "model.pt2"), inductor_configs=OPTIONS)
    return {"target": "inductor"}


VARIANTS = {"fp32": fp32, "bf16": bf16}
KINDS = {"fp32": ("image", "text", "decoder"), "bf16": ("image", "text", "decoder")}
SLOW = ("bf16",)
