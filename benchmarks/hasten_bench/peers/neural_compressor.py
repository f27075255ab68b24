"""neural-compressor 3 for PyTorch: static int8 (PT2E, minmax) and int4 weights (RTN).

Its ONNX quantizers left the package with release 3; its programs run through PyTorch's compiler.
"""

REQUIREMENTS = ("neural-compressor-pt==3.10", "onnx==1.23.2", "onnxruntime==1.32.0", "onnxscript==0.7.2")
TITLE = "neural-compressor"


def static_int8(job):
    import torch
    from neural_compressor.torch.export import export
    from neural_compressor.torch.quantization import StaticQuantConfig, convert, prepare

    shapes = tuple({0: torch.export.Dim("batch", min=1)} for _ in job.about["inputs"])
    graph = export(job.network(), example_inputs=job.example(), dynamic_shapes=shapes)
    prepared = prepare(graph, StaticQuantConfig())
    with torch.no_grad():
        for batch in job.tensors("calibration"):
            prepared(*batch)
    return _compile(job, convert(prepared), shapes)


def weight_int4(job):
    from neural_compressor.torch.quantization import RTNConfig, convert, prepare

    model = convert(prepare(job.network(), RTNConfig(bits=4, group_size=32)))
    return _compile(job, model, None)


def _compile(job, model, shapes):
    import torch
    from torch._inductor import aoti_compile_and_package

    example = job.example() if shapes else tuple(x[:1] for x in job.example())
    with torch.no_grad():
        program = torch.export.export(model, example, dynamic_shapes=shapes, strict=False)
        aoti_compile_and_package(program, package_path=str(job.out / "model.pt2"), inductor_configs={"freezing": True})
    return {"target": "inductor"}


VARIANTS = {"static_int8": static_int8, "weight_int4": weight_int4}
KINDS = {"static_int8": ("image", "text"), "weight_int4": ("decoder",)}
