"""hasten: the search on work with data; by hand, post-training int8 for each runtime, on all."""

REQUIREMENTS = ()
TITLE = "hasten"


def search(job):
    import hasten

    found = hasten.run(
        _task(job), hasten.Budget(max_drop=job.about["max_drop"], minutes=job.minutes), out=job.out / "run"
    )
    if found.best is None:
        raise RuntimeError(found.explanation)
    return _program(job, found.best)


def int8_onnxruntime(job):
    return _by_hand(job, "onnxruntime")


def int8_openvino(job):
    return _by_hand(job, "openvino")


def _by_hand(job, target):
    import hasten
    from hasten.recipe import make_technique, targets

    placements = getattr(targets()[target], "placements", ())
    task = _task(job)
    step = make_technique("quantize", {"placement": placements[0]} if placements else {})
    graph = step.apply(hasten.capture(task.model, task.example), task)
    return _program(job, hasten.compile(graph, task, target, job.out / "by_hand.hasten"))


def _task(job):
    import hasten

    many = len(job.about["inputs"]) > 1
    batches = [_batch(x, many) for x in job.tensors("validation")] if job.about["trained"] else []
    calibration = [x if many else x[0] for x in job.tensors("calibration")]
    score = _cosine if job.about["metric"] == "cosine" else None
    holdout = batches or [(x, None) for x in calibration]
    return hasten.Task(job.network(), job.example(), holdout, calibration=calibration, score=score)


def _batch(tensors, many):
    return (tensors[:-1] if many else tensors[0]), tensors[-1]


def _cosine(output, target):
    import torch

    return torch.nn.functional.cosine_similarity(output.flatten(1), target.flatten(1))


def _program(job, artifact):
    target = artifact.manifest["target"]
    return {
        "target": target["name"],
        "options": target["options"],
        "folder": str(artifact.path.resolve().relative_to(job.out.resolve())),
    }


VARIANTS = {"search": search, "int8_onnxruntime": int8_onnxruntime, "int8_openvino": int8_openvino}
KINDS = {
    "search": ("image", "text"),
    "int8_onnxruntime": ("image", "text"),
    "int8_openvino": ("image", "text"),
}
NEEDS_VALIDATION = ("search",)
