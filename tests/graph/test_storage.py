"""A graph on disk: what comes back runs, trains and is captured again; what a stranger wrote runs nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hasten
from hasten.errors import InvalidInput, Unsupported
from hasten.graph.capture import capture
from hasten.graph.channels import find_channels
from hasten.graph.storage import load_graph, save_graph


class Tied(nn.Module):
    """Two layers that share a weight, a buffer, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.register_buffer("shift", torch.ones(6))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.second(self.first(x).relu()) + self.shift
        return y, y.unflatten(1, (2, 3))[..., ::2]


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_graph(capture(Tied(), (torch.rand(4, 6),)), tmp_path)
    return tmp_path


def test_outputs_names_and_ties_survive(stored: Path) -> None:
    torch.manual_seed(0)
    graph, again, x = capture(Tied(), (torch.rand(4, 6),)), load_graph(stored), torch.rand(3, 6)
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in graph.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(graph(x), again(x), strict=True))
    before = again(x)[0].detach()
    again(x)[0].sum().backward()
    with torch.no_grad():
        for p in again.parameters():
            assert p.grad is not None
            p.sub_(p.grad, alpha=0.1)
    assert not torch.equal(before, again(x)[0])


def test_a_loaded_graph_is_captured_and_pruned_like_the_first(digits_task: hasten.Task, tmp_path: Path) -> None:
    graph = capture(digits_task.model, digits_task.example)
    save_graph(graph, tmp_path)
    again = capture(load_graph(tmp_path), digits_task.example)
    groups = [[(g.name, len(g.units)) for g in find_channels(x).groups] for x in (graph, again)]
    assert groups[0] == groups[1]
    assert list(again.state_dict()) == list(graph.state_dict())


def test_a_quantized_graph_survives(digits_task: hasten.Task, tmp_path: Path) -> None:
    graph = hasten.Quantize().apply(capture(digits_task.model, digits_task.example), digits_task)
    save_graph(graph, tmp_path)
    x = torch.rand(5, 1, 8, 8)
    assert torch.equal(load_graph(tmp_path)(x), graph(x))


def test_what_cannot_be_stored_is_named(tmp_path: Path) -> None:
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(Unsupported, match="is a call_module"):
        save_graph(graph, tmp_path)


def _node(document: dict[str, Any], op: str) -> list[Any]:
    found: list[Any] = next(node for node in document["graph"]["nodes"] if node[0] == op)
    return found


def _set(op: str, index: int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        _node(document, op)[index] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("call_function", 2, "builtins.exec"), "operators of a captured graph"),
        (_set("call_function", 2, "aten.from_file.default"), "operators of a captured graph"),
        # These write or read outside of their tensors when an index says so.
        (_set("call_function", 2, "aten.max_pool2d_with_indices_backward.default"), "operators of a captured graph"),
        (_set("call_function", 2, "aten._sparse_coo_tensor_unsafe.default"), "operators of a captured graph"),
        (_set("call_function", 2, "aten.segment_reduce.default"), "operators of a captured graph"),
        (_set("call_function", 2, "aten.ctc_loss.IntList"), "operators of a captured graph"),
        (_set("call_function", 2, "aten.fbgemm_linear_int8_weight.default"), "operators of a captured graph"),
        (_set("call_function", 2, "aten.set_.source_Tensor"), "operators of a captured graph"),
        (_set("call_function", 2, "torchao.da8w4_linear_cpu.default"), "operators of a captured graph"),
        # Compiled code, and assembler that stands in the graph.
        (_set("call_function", 2, "higher_order.inductor_compiled_code"), "operators of a captured graph"),
        (_set("call_function", 2, "higher_order.inline_asm_elementwise"), "operators of a captured graph"),
        (_set("call_function", 2, "operator.attrgetter"), "operators of a captured graph"),
        (_set("call_function", 2, "aten.conv2d.__init__"), "is none"),
        (_set("call_function", 0, "call_method"), "operators on its own tensors"),
        (_set("placeholder", 2, "x, y=__import__('os')"), "identifiers"),
        (_set("placeholder", 1, "x\nimport os"), "identifiers"),
        (_set("call_function", 4, {"dict": {"a=print(1), b": 1}}), "identifiers"),
        (_set("call_function", 3, {"tuple": [{"torch": "load"}]}), "settings"),
        (_set("placeholder", 1, "import"), "must hold a stored graph"),
        (_set("get_attr", 2, "__class__.__init__"), "its own tensors"),
        (lambda d: d["graph"]["attributes"].update({"forward()": {}}), "must hold a stored graph"),
        (lambda d: d.update(schema=9), "schema 1"),
        (lambda d: d.pop("graph"), "must hold a stored graph"),
    ],
)
def test_a_changed_file_is_refused(stored: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    document = json.loads((stored / "graph.json").read_text())
    change(document)
    (stored / "graph.json").write_text(json.dumps(document))
    with pytest.raises(InvalidInput, match=message):
        load_graph(stored)


def test_deep_nesting_is_refused(stored: Path) -> None:
    (stored / "graph.json").write_text("[" * 100_000)
    with pytest.raises(InvalidInput, match="must be valid JSON"):
        load_graph(stored)


def test_values_cannot_leave_the_source_that_is_generated(stored: Path, tmp_path: Path) -> None:
    """Strings and names of a stored graph stand in Python source, quoted."""
    proof = tmp_path / "ran"
    code = f"open({str(proof)!r}, 'w')"
    for text in (f"'+{code}+'", f'"+{code}+"', f"\n{code}\n#", "\\"):
        document = json.loads((stored / "graph.json").read_text())
        _node(document, "call_function")[3] = {"tuple": [text, {"dict": {text: 1}}, {"slice": [text, None, None]}]}
        (stored / "graph.json").write_text(json.dumps(document))
        with pytest.raises((InvalidInput, TypeError, RuntimeError)):
            load_graph(stored)(torch.rand(3, 6))
        assert not proof.exists()


class Leftovers(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole = torch.int64  # nothing times 0 may be NaN, as memory that was left can be
        return x + 0 * (torch.empty(6, dtype=whole) + torch.empty_like(x, dtype=whole) + x.new_empty(6, dtype=whole))


def test_memory_as_it_was_left_is_not_shown(tmp_path: Path) -> None:
    graph = capture(Leftovers(), (torch.rand(4, 6),))
    save_graph(graph, tmp_path)
    called = {str(node.target) for node in load_graph(tmp_path).graph.nodes if node.op == "call_function"}
    assert not any("empty" in name for name in called)
    assert sum("zeros" in name for name in called) == 3


def test_operators_that_believe_their_arguments_are_not_stored(tmp_path: Path) -> None:
    class Sparse(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.aten.segment_reduce(x, "sum", lengths=torch.tensor([4]))

    with pytest.raises(Unsupported, match="must call known operators only, but calls aten"):
        save_graph(capture(Sparse(), (torch.rand(4),)), tmp_path)


def test_a_branch_survives(tmp_path: Path) -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            branch: torch.Tensor = torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x - 1, (x,))
            return branch

    x = torch.rand(4, 3)
    graph = capture(Branch(), (x,))
    save_graph(graph, tmp_path)
    loaded = load_graph(tmp_path)
    for value in (x, -x):
        torch.testing.assert_close(loaded(value), graph(value))
