"""pruna, what of it runs on a CPU: torchao's dynamic int8 behind `smash`, compiled by AOTInductor."""

REQUIREMENTS = ("pruna==0.3.4", "huggingface_hub==1.33.0")
TITLE = "pruna"


def dynamic_int8(job):
    job.declare_torchvision()
    from pruna import SmashConfig, smash

    config = SmashConfig(["torchao"], device="cpu")
    config.add({"torchao_quant_type": "int8dq"})
    model = smash(model=job.network(), smash_config=config, experimental=True)
    return _compile(job, model)


def _compile(job, model):
    import torch
    from torch._inductor import aoti_compile_and_package

    example = tuple(x[:1] for x in job.example())
    with torch.no_grad():
        program = torch.export.export(model.model, example, strict=False)
        aoti_compile_and_package(program, package_path=str(job.out / "model.pt2"), inductor_configs={"freezing": True})
    return {"target": "inductor"}


VARIANTS = {"dynamic_int8": dynamic_int8}
KINDS = {"dynamic_int8": ("image", "text")}
