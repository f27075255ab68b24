"""hasten: the search on work with data; by hand, what needs no search, on all."""

REQUIREMENTS = ()
TITLE = "hasten"


def search(job):
    import hasten

    budget = hasten.Budget(max_drop=job.about["max_drop"], minutes=job.minutes)
    found = hasten.run(_task(job, searching=True), budget, out=job.out / "run")
    if found.best is None:
        raise RuntimeError(found.explanation)
    return _program(job, found.best)


def int8_onnxruntime(job):
    import hasten

    return _by_hand(job, "onnxruntime", hasten.Quantize(placement="fuse_clamps"))


def int8_openvino(job):
    import hasten

    return _by_hand(job, "openvino", hasten.Quantize(placement="fuse_activations"))


def int8_bf16_openvino(job):
    import hasten

    return _by_hand(job, "openvino", hasten.Quantize(placement="fuse_activations"), precision="bf16")


def bf16_openvino(job):
    return _by_hand(job, "openvino", precision="bf16")


def fp32_onnxruntime(job):
    return _by_hand(job, "onnxruntime")


def weight_int8_onnxruntime(job):
    import hasten

    return _by_hand(job, "onnxruntime", hasten.QuantizeWeights(bits=8, group=32))


def weight_int4_onnxruntime(job):
    import hasten

    return _by_hand(job, "onnxruntime", hasten.QuantizeWeights(bits=4, group=32))


def weight_int8_openvino(job):
    import hasten

    return _by_hand(job, "openvino", hasten.QuantizeWeights(bits=8, group=32))


def weight_int4_openvino(job):
    import hasten

    return _by_hand(job, "openvino", hasten.QuantizeWeights(bits=4, group=32))


def _by_hand(job, target, *steps, **options):
    import hasten

    task = _task(job)
    graph = hasten.capture(task.model, task.example)
    for step in steps:
        graph = step.apply(graph, task)
    return _program(job, hasten.compile(graph, task, target, job.out / "by_hand.hasten", options=options, steps=steps))


def _task(job, searching=False):
    import hasten

    many = len(job.about["inputs"]) > 1
    calibration = [x if many else x[0] for x in job.tensors("calibration")]
    return hasten.Task(
        job.network(),
        job.example(),
        holdout=[_batch(x, many) for x in job.tensors("validation")] if searching else [(x, None) for x in calibration],
        train=_training(job, many) if searching else None,
        calibration=calibration,
        loss=None if job.about["metric"] == "top1" else _one_minus_cosine,
        score=hasten.cosine_similarity if job.about["metric"] == "cosine" else None,
        metric=job.rank_correlation if searching and job.about["metric"] == "spearman" else None,
    )


def _training(job, many):
    rows = 128 if len(job.targets("train")) > 10_000 else 32
    return [_batch(x, many) for x in job.tensors("train", rows)]


def _batch(tensors, many):
    return (tensors[:-1] if many else tensors[0]), tensors[-1]


def _one_minus_cosine(output, target):
    import hasten

    return 1 - hasten.cosine_similarity(output, target).mean()


def _program(job, artifact):
    target = artifact.manifest["target"]
    return {
        "target": target["name"],
        "options": target["options"],
        "folder": str(artifact.path.resolve().relative_to(job.out.resolve())),
    }


VARIANTS = {
    "search": search,
    "int8_onnxruntime": int8_onnxruntime,
    "int8_openvino": int8_openvino,
    "int8_bf16_openvino": int8_bf16_openvino,
    "bf16_openvino": bf16_openvino,
    "fp32_onnxruntime": fp32_onnxruntime,
    "weight_int8_onnxruntime": weight_int8_onnxruntime,
    "weight_int4_onnxruntime": weight_int4_onnxruntime,
    "weight_int8_openvino": weight_int8_openvino,
    "weight_int4_openvino": weight_int4_openvino,
}
KINDS = {
    "search": ("image", "text"),
    "int8_onnxruntime": ("image", "text"),
    "int8_openvino": ("image", "text"),
    "int8_bf16_openvino": ("image", "text"),
    "bf16_openvino": ("image", "text", "decoder"),
    "fp32_onnxruntime": ("image", "text", "decoder"),
    "weight_int8_onnxruntime": ("decoder",),
    "weight_int4_onnxruntime": ("decoder",),
    "weight_int8_openvino": ("decoder",),
    "weight_int4_openvino": ("decoder",),
}
NEEDS_VALIDATION = ("search",)
BUDGETED = ("search",)
SLOW = ("bf16_openvino", "fp32_onnxruntime")
