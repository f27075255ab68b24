"""The task file that `hasten init` writes, from three answers: what goes in, where the data is, where the model is."""

import json
import re
from importlib import resources

import jinja2

from hasten.errors import InvalidInput, unknown

# What in the file must be as it was in training.
TO_CHECK = {
    "images": "Check SIZE, MEAN, STD and image() in it: all must be as in training.",
    "text": "Check TOKENS and the tokenizer in it: both must be as in training.",
    "numbers": "Check samples() in it: columns scaled as in training.",
    "audio": "Check SAMPLES and recording() in it: both must be as in training.",
}
KINDS = tuple(TO_CHECK)


def task_file(file: str, kind: str = "images", data: str = "", model: str = "") -> str:
    """The text of a task file that runs as it is.

    Args:
        file: Its name, for the first line.
        kind: What the model takes: images, text, numbers, audio.
        data: A folder with one sub-folder per class (images, audio), a file of `label<TAB>text` lines (text), or a CSV
            file whose last column is the class (numbers). Empty: random data to try with.
        model: `package.module:function` that returns the module, or a name or folder that Hugging Face transformers
            loads. Empty: a small network to put one's own in place of.

    Raises:
        InvalidInput: An unknown kind, or numbers with a pretrained name.
    """
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    found = re.fullmatch(r"([\w.]+):(\w+)", model)
    if model and not found and kind == "numbers":
        raise InvalidInput(f"A model of numbers must be `package.module:function`, but got {model!r}.")
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True, autoescape=False)
    text = resources.files("hasten").joinpath("templates/task.py.j2").read_text()
    return environment.from_string(text).render(
        file=file,
        kind=kind,
        data=json.dumps(data) if data else "",
        module=found[1] if found else "",
        function=found[2] if found else "",
        pretrained=json.dumps(model) if model and not found else "",
    )
