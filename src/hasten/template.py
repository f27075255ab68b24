"""The task file that `hasten init` writes."""

TASK_FILE = '''"""What hasten needs to know about my model. Run it with: hasten run {file}"""

import torch

import hasten


def task() -> hasten.Task:
    # Your trained network; hasten captures it once, in eval mode, and never changes it.
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(28 * 28, 10))

    # One batch of inputs, batch first. Several inputs: (a, b).
    example = (torch.rand(8, 1, 28, 28),)

    # Batches of (inputs, target) that were NOT used for training, in any form that can be iterated more than once,
    # such as a DataLoader without shuffling. A quarter steers the search, the rest only certifies, so bring enough:
    # about 520 samples can certify a drop of 1 point. Without labels yield (inputs, None).
    holdout = [(torch.rand(8, 1, 28, 28), torch.randint(0, 10, (8,))) for _ in range(100)]

    return hasten.Task(
        model=model,
        example=example,
        holdout=holdout,
        # train=train_loader,        # lets hasten recover accuracy by training
        # preprocess=Resize(),       # module on raw inputs, such as uint8 images; compiled into the artifact
        # postprocess=TopK(),        # module on the outputs; compiled into the artifact, and `score` judges its answers
        # score=my_score,            # score(output, target) -> [N], higher is better; default: top-1
        name="my model",
    )
'''.replace("{file}", "task.py")
