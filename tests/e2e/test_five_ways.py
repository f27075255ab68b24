"""Four new users, each with what they have and what docs/ways-in.md tells them, through the command line alone.

The fifth is in test_operating.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import hasten
from hasten.errors import InvalidInput
from hasten.taskfile import load_task

MEAN, STD = "0.485,0.456,0.406", "0.229,0.224,0.225"  # of the task file that `hasten init` writes
# A network of few layers: what counts is that every step works, on files as users have them.
MLP = """
from pathlib import Path

import torch


def make():
    net = torch.nn.Sequential({layers})
    net.load_state_dict(torch.load(Path(__file__).parent / "mynet.pt", weights_only=True))
    return net
"""


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hasten.cli", *arguments]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False, timeout=300, env=settings)


def ok(folder: Path, *arguments: str) -> str:
    done = run(folder, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def result_of(folder: Path) -> Any:
    return json.loads((folder / "runs" / "last" / "result.json").read_text())


def trained(net: Any, x: torch.Tensor, y: torch.Tensor, steps: int = 30) -> Any:
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        output = net(x)
        nn.functional.cross_entropy(getattr(output, "logits", output), y).backward()
        optimizer.step()
    return net.eval()


def test_a_resnet_and_a_folder_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    generator = np.random.default_rng(0)
    for label, name in enumerate(("night", "day")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(120):
            pixels = generator.integers(0, 120, (40, 50, 3)) + label * 120
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / name / f"{number:03}.JPG")
    (tmp_path / "photos" / "day" / "Thumbs.db").write_bytes(b"not a picture")
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=2)
    y = torch.arange(64) % 2
    x = torch.randn(64, 3, 32, 32) + (0.5 - y)[:, None, None, None] * 4  # by name "day" is 0
    trained(ResNetForImageClassification(config), x, y).save_pretrained(tmp_path / "my-resnet")

    ok(tmp_path, "init", "--kind", "images", "--data", "photos", "--model", "my-resnet")
    text = (tmp_path / "task.py").read_text()
    (tmp_path / "task.py").write_text(text.replace("SIZE = 224", "SIZE = 32"))
    out = ok(tmp_path, "run", "task.py", "--max-drop", "5%", "--targets", "onnxruntime", "--no-training")
    assert "passed" in out
    assert result_of(tmp_path)["trials"][0]["score"] > 0.95, "the pictures reached the network as it knows them"
    best = tmp_path / "runs" / "last" / "best.hasten"
    assert "outputs reproduced" in ok(tmp_path, "verify", str(best))
    loaded = f"import sys, hasten; hasten.load({str(best)!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", loaded], check=True)

    # What was certified is what is deployed: `batch` reads pictures as the task file does.
    ok(tmp_path, "batch", str(best), "photos/day", "answers", "--mean", MEAN, "--std", STD)
    answers = np.load(tmp_path / "answers" / "part-00000.npz")
    assert [str(key) for key in answers["key"][:2]] == ["000.JPG", "001.JPG"]
    monkeypatch.chdir(tmp_path)
    pictures, _ = next(iter(load_task("task.py").holdout))
    np.testing.assert_allclose(hasten.load(best)(pictures)[0], answers["output_0"][: len(pictures)], atol=1e-4)


def test_a_hugging_face_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "good", "bad", "the", "film", "was"]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    rows = [("no", f"the film was bad {'the ' * (i % 5)}") for i in range(120)]
    rows += [("yes", f"the film {'film ' * (i % 7)} was good") for i in range(120)]
    (tmp_path / "reviews.tsv").write_text("\n".join("\t".join(row) for row in rows))
    ids = tokenizer([text for _, text in rows[::4]], padding="max_length", max_length=16, return_tensors="pt").input_ids
    net = BertForSequenceClassification(config)
    trained(net, ids, torch.arange(60) // 30, 15).save_pretrained(tmp_path / "my-encoder")
    tokenizer.save_pretrained(tmp_path / "my-encoder")

    ok(tmp_path, "init", "--kind", "text", "--data", "reviews.tsv", "--model", "my-encoder")
    text = (tmp_path / "task.py").read_text()
    (tmp_path / "task.py").write_text(text.replace("TOKENS = 128", "TOKENS = 16"))
    out = ok(tmp_path, "run", "task.py", "--max-drop", "5%", "--targets", "onnxruntime", "--no-training")
    assert "passed" in out
    assert result_of(tmp_path)["trials"][0]["score"] > 0.9

    # Without a head, transformers would make one up, and the certificate would be about that.
    BertModel(config).save_pretrained(tmp_path / "my-encoder")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match=r"classifier\.weight: train that first"):
        load_task("task.py")


def digits(folder: Path, layers: str) -> None:
    """A trained network and a table of 900 samples that it was not trained on."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    table = np.column_stack([x[897:] / 16, y[897:]])
    header = ",".join([*(f"p{i}" for i in range(64)), "digit"])
    np.savetxt(folder / "digits.csv", table, "%g", ",", header=header, comments="")
    torch.manual_seed(0)
    net = eval(f"nn.Sequential({layers})", {"nn": nn})
    trained(net, torch.tensor(x[:897] / 16, dtype=torch.float32), torch.tensor(y[:897]), 60)
    torch.save(net.state_dict(), folder / "mynet.pt")
    (folder / "mynet.py").write_text(MLP.format(layers=layers.replace("nn.", "torch.nn.")))
    ok(folder, "init", "--kind", "numbers", "--data", "digits.csv", "--model", "mynet:make")


@pytest.mark.parametrize("target", ["onnxruntime", pytest.param("litert", marks=pytest.mark.stack("litert"))])
def test_256_kilobytes_to_fit_into(target: str, tmp_path: Path) -> None:
    digits(tmp_path, "nn.Linear(64, 448), nn.ReLU(), nn.Linear(448, 320), nn.ReLU(), nn.Linear(320, 10)")
    limits = ["--max-size", "256KB", "--objective", "size", "--max-drop", "3%"]
    out = ok(tmp_path, "run", "task.py", *limits, "--targets", target, "--no-training")
    assert "passed" in out
    best = tmp_path / "runs" / "last" / "best.hasten"
    (program,) = (x for x in best.iterdir() if x.suffix in (".tflite", ".onnx"))
    assert program.stat().st_size <= 256_000
    assert result_of(tmp_path)["trials"][0]["size_bytes"] > 2 * 256_000, "it did not fit before"
    assert json.loads((best / "certificate.json").read_text())["passed"]


def wanting_verilog(folder: Path) -> list[str]:
    """The command line of somebody who wants logic."""
    digits(folder, "nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10)")
    recipe = "steps: [{quantize: {placement: symmetric}}]\ntarget: {fpga: {simulator: interpreter, samples: 16}}\n"
    (folder / "verilog.yaml").write_text(recipe)
    return ["apply", "verilog.yaml", "task.py", "--out", "net.hasten"]


def test_wanting_verilog_without_its_tools(tmp_path: Path) -> None:
    done = run(tmp_path, *wanting_verilog(tmp_path))
    assert done.returncode == 2
    assert "hasten targets install fpga" in done.stderr


@pytest.mark.stack("fpga")
def test_wanting_verilog(tmp_path: Path) -> None:
    ok(tmp_path, *wanting_verilog(tmp_path))
    report = json.loads((tmp_path / "net.hasten" / "report.json").read_text())
    assert report["mismatches"] == {"interpreter": 0}
    assert "module network" in (tmp_path / "net.hasten" / "verilog" / "src" / "network.v").read_text()
