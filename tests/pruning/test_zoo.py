"""Pruning is exact on every architecture of the zoo; see `pruning_proof`. CI proves a part, `make test-all` all."""

import pruning_proof
import pytest
import zoo

IN_CI = [
    *zoo.HANDWRITTEN,
    "convnext",
    "swin",
    "vit",
    "bert",
    "deberta",
    "llama-gqa",
    "gpt2",
    "wav2vec2",
    "mamba",
]
ONNX_IN_CI = ["cifar-resnet-option-a", "shufflenet-v2", "fused-attention", "gru"]
LOW_REACH = 0.9


@pytest.mark.parametrize("name", IN_CI)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_pruning_is_exact(name: str) -> None:
    proof = pruning_proof.prove(name, cuts=2)
    prunable = proof.reach.macs - proof.reach.fixed_macs
    if name != "unknown-operator":
        assert proof.reach.exact_macs + proof.reach.approximate_macs >= LOW_REACH * prunable


@pytest.mark.parametrize("name", ONNX_IN_CI)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_pruned_graph_runs_in_onnx_runtime(name: str) -> None:
    assert pruning_proof.check_onnx(name) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(zoo.ZOO) - set(IN_CI)))
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_pruning_is_exact_on_the_rest_of_the_zoo(name: str) -> None:
    pruning_proof.prove(name, cuts=8)
