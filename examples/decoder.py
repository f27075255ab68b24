"""A decoder: a small language model of characters, trained here for a minute on docstrings of the standard library.

The score is the share of held-out windows whose next character is guessed; the loss is that of language modelling.

Run it: hasten run examples/decoder.py --max-drop 1%
"""

import ast
import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import hasten

WINDOW = 32
CHARACTERS = 96  # printable ASCII; everything else is a space


class Decoder(nn.Module):
    """Characters [N, 32] int64 to the logits [N, 96] of the one that follows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=CHARACTERS,
                hidden_size=64,
                intermediate_size=192,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=WINDOW,
                bos_token_id=None,
                eos_token_id=None,
            )
        )

    def forward(self, characters: Tensor) -> Tensor:
        logits: Tensor = self.inner(input_ids=characters, use_cache=False).logits[:, -1]
        return logits


def windows() -> tuple[Tensor, Tensor]:
    """Windows [N, 32] of text and the character [N] behind each, in a fixed random order."""
    texts = [
        " ".join(text.split())
        for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:60]
        for node in ast.walk(ast.parse(path.read_text(errors="replace")))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and (text := ast.get_docstring(node))
    ]
    codes = torch.tensor([min(max(ord(c), 32), 127) - 32 for c in " ".join(texts)])
    rows = codes.unfold(0, WINDOW + 1, 7)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    return rows[:, :WINDOW].contiguous(), rows[:, WINDOW].contiguous()


def train(model: nn.Module, inputs: Tensor, following: Tensor, steps: int = 300) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(0, len(following), (128,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[rows]), following[rows]).backward()
        optimizer.step()
    return model.eval()


def task() -> hasten.Task:
    torch.manual_seed(0)
    inputs, following = windows()
    held = 1600
    training = inputs[held:], following[held:]
    return hasten.Task(
        model=train(Decoder(), *training),
        example=(inputs[:8],),
        holdout=list(zip(inputs[:held].split(64), following[:held].split(64), strict=True)),
        train=list(zip(training[0][:4096].split(64), training[1][:4096].split(64), strict=True)),
        name="decoder",
    )
