"""torchao: PT2E static int8 for x86 compiled by AOTInductor, and weight-only int8 and int4 by `quantize_`.

Compiled as torchao's own x86 tutorial does it, with frozen weights and without max-autotune: that would build and time
C++ kernels for every integer matrix product, which takes longer than any limit here on two cores.
"""

REQUIREMENTS = ()
TITLE = "torchao + AOTInductor"


def static_int8(job):
    import torch
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    graph = _export(job, job.network()).module(check_guards=False)
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(graph, quantizer)
    with torch.no_grad():
        for batch in job.tensors("calibration"):
            prepared(*batch)
    converted = convert_pt2e(prepared)
    move_exported_model_to_eval(converted)
    return _compile(job, _export(job, converted))


def weight_int8(job):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = job.network()
    quantize_(model, Int8WeightOnlyConfig())
    return _compile(job, _export(job, model))


def dynamic_int8(job):
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = job.network()
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return _compile(job, _export(job, model))


def weight_int4(job):
    import torch
    from torchao.quantization import Int4WeightOnlyConfig, quantize_

    model = job.network().to(torch.bfloat16)
    quantize_(model, Int4WeightOnlyConfig(group_size=32, int4_packing_format="opaque"))
    return _compile(job, _export(job, _bf16_inside(model)))


def _bf16_inside(model):
    import torch

    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, token, cache):
            return self.model(token, cache.to(torch.bfloat16)).float()

    return Wrapper()


def _export(job, model):
    import torch

    shapes = tuple({0: torch.export.Dim("batch", min=1)} for _ in job.about["inputs"])
    if job.about["kind"] == "decoder":
        shapes = None
    example = tuple(x[:1] for x in job.example()) if shapes is None else job.example()
    return torch.export.export(model, example, dynamic_shapes=shapes, strict=False)


def _compile(job, program):
    import torch
    from torch._inductor import aoti_compile_and_package

    with torch.no_grad():
        aoti_compile_and_package(program, package_path=str(job.out / "model.pt2"), inductor_configs={"freezing": True})
    return {"target": "inductor"}


VARIANTS = {
    "static_int8": static_int8,
    "dynamic_int8": dynamic_int8,
    "weight_int8": weight_int8,
    "weight_int4": weight_int4,
}
KINDS = {
    "static_int8": ("image", "text"),
    "dynamic_int8": ("text",),
    "weight_int8": ("decoder",),
    "weight_int4": ("decoder",),
}
