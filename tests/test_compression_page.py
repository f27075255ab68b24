"""docs/compression-results.md is what the results say; what is missing is left out, and what is behind is said."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from compression_page import HEAD, PAGE, RESULTS, SECTIONS, page
from hasten.recipe import describe

USED = sorted({path.stem for pattern in SECTIONS for path in RESULTS.glob(f"{pattern}.json")})


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A copy of the results that the page is made of."""
    for name in USED:
        shutil.copy(RESULTS / f"{name}.json", tmp_path)
    return tmp_path


def _write(folder: Path, name: str, document: dict[str, Any]) -> None:
    (folder / f"{name}.json").write_text(json.dumps(document))


def _headings(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("## ")]


def _latency(ratio: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    return {"ratio": ratio, "ratio_low": low, "ratio_high": high, "median_ms": 1 / ratio, "turns": 15} | more


def _runs(*top1: float) -> dict[str, Any]:
    spread = 0.01 if len(top1) > 1 else None
    runs = {str(seed): {"top1": x, "macs": 4e6, "peak_lr": 0.05} for seed, x in enumerate(top1)}
    return {"runs": runs, "mean_top1": sum(top1) / len(top1), "stdev_top1": spread}


def test_the_page_is_what_was_measured() -> None:
    assert PAGE.read_text() == page(), "run `python benchmarks/compression_page.py`"


def test_other_results_make_another_page(results: Path) -> None:
    found = json.loads((results / "distill_cifar.json").read_text())
    found["table"]["student alone"]["runs"]["0"]["top1"] += 0.1
    _write(results, "distill_cifar", found)
    assert page(results) != page()


def test_without_results_no_section_is_invented(tmp_path: Path) -> None:
    assert page(tmp_path) == HEAD.rstrip() + "\n"


@pytest.mark.parametrize("name", USED)
def test_a_section_goes_with_its_file(results: Path, name: str) -> None:
    (results / f"{name}.json").unlink()
    left = page(results)
    assert f"`{name}.json`" not in left
    assert set(_headings(left)) <= set(_headings(page()))
    assert all(f"`{other}.json`" in left for other in USED if other != name and f"`{other}.json`" in page())


def test_minilm_shows_latency_once_it_is_there(results: Path) -> None:
    found = json.loads((results / "distill_minilm.json").read_text())
    found.pop("latency", None)
    _write(results, "distill_minilm", found)
    assert "distilled against original" not in page(results)
    pair = {"original-openvino": _latency(1, 1, 1), "distilled-openvino": _latency(1.8, 1.7, 1.9)}
    _write(results, "distill_minilm", found | {"latency": {"openvino": pair}})
    assert "| openvino | 1.80 [1.70, 1.90] | 15 |" in page(results)


def test_rows_behind_a_peer_and_single_seeds_are_said(tmp_path: Path) -> None:
    rows = {"hasten filters": _runs(0.70), "hasten filters, taught": _runs(0.8, 0.82)}
    document = {"budget": {"network": "N"}, "baseline": {"top1": 0.9, "macs": 8e6}}
    _write(
        tmp_path,
        "prune_cifar_resnet20",
        document | {"2.1x": rows | {"torch-pruning L2": _runs(0.74, 0.76), "torch-pruning growing": _runs(0.6, 0.6)}},
    )
    text = page(tmp_path)
    assert "| 2.1x | hasten filters | 4.0 |  | 70.0 (one seed) | 20.0 |" in text
    assert (
        "N at 2.1x, against torch-pruning L2: hasten filters **behind** by 5.0 points, one seed; "
        "hasten filters, taught ahead by 6.0 points." in text
    )


def test_slower_cuts_are_said(tmp_path: Path) -> None:
    rows = {
        "dense": _latency(1, 1, 1, macs=8e6),
        "2.1x hasten filters": _latency(1.2, 0.9, 1.3, macs=4e6),
        "2.1x torch-pruning L2": _latency(1.5, 1.4, 1.6, macs=4e6),
    }
    _write(tmp_path, "prune_cifar_latency_resnet56", {"budget": {"runtime": "onnxruntime"}, "batch_1": rows})
    text = page(tmp_path)
    assert "ResNet-56 in onnxruntime" in text
    assert "| 2.1x hasten filters | 2.00 | 1.20 [0.90, 1.30] |" in text
    assert "Slower than torch-pruning's cut at the same goal: 2.1x hasten filters, batch 1 (0.80)." in text
    assert "Not shown to be faster, since the interval reaches 1: 2.1x hasten filters, batch 1." in text


def test_single_weights(tmp_path: Path) -> None:
    budget = {"network": "N", "training_images": 10240, "epochs_per_level": 1}
    ways = {"one step, not trained": _runs(0.1), "iterative": _runs(0.8, 0.84), "one step": _runs(0.7)}
    _write(tmp_path, "prune_weights_cifar", {"budget": budget, "dense_top1": 0.9, "50%": ways})
    text = page(tmp_path)
    assert "10,240 training images, 1 epoch a level." in text
    assert "| 50% | 82.0 ± 1.0 (2 seeds) | 70.0 (one seed) | 10.0 (one seed) | 8.0 |" in text


def test_powers_of_two_beside_the_best_linear_row(tmp_path: Path) -> None:
    top1 = {
        "float": 0.9,
        "quantize": 0.89,
        "quantize_weights(scheme=power_of_two, bits=4)": 0.8,
        "quantize_weights(scheme=power_of_two, bits=4, bias_correction=False)": 0.7,
        "quantize_weights(bits=4, rounding=nearest)": 0.81,
        "quantize_weights(bits=4)": 0.85,
        "quantize_weights(bits=3)": 0.5,
    }
    found = {"top1": top1, "images": 4000}
    _write(tmp_path, "low_bit_weights", {"resnet20": found})
    assert not _headings(page(tmp_path)), "which weights were scored is not known"
    _write(tmp_path, "low_bit_weights", {"resnet20": found | {"weights": "published"}})
    text = page(tmp_path)
    assert "| linear, rounded against the data | 85.0 | 50.0 |" in text
    assert "| powers of two, biases as they were | 70.0 |  |" in text
    assert "At 4 bits powers of two at best are 5.0 points below the best linear row" in text
    assert "as they are, -1.0 points." in text
    assert "At 3 bits" not in text


def test_every_row_of_few_bits_has_words() -> None:
    pytest.importorskip("PIL")
    from compression_sections.rounded import ROUNDED, low_bit_scores
    from low_bit_weights import rows

    weights, int8 = low_bit_scores({describe(technique): 0.5 for technique in rows()})
    assert set(weights) == set(ROUNDED.values())
    assert int8


def test_slower_int8_is_said(tmp_path: Path) -> None:
    rows = [
        {"name": "hasten static / x", "tool": "hasten", "cosine_to_float": 0.99},
        {"name": "nncf mixed / x", "tool": "nncf", "cosine_to_float": 0.98},
    ]
    timed = {"nncf mixed / x": _latency(1, 1, 1), "hasten static / x": _latency(0.9, 0.85, 0.95)}
    contests = {"any": {"best_peer": "nncf mixed / x", "rows": timed}}
    network = {"contests": contests, "rows": rows, "left_out": {"torchao static": "because"}, "load": 0.5}
    machine = {"cpu": "C", "cores": 2}
    document = {"machine": machine, "threads": 2, "turns": 25, "networks": {"minilm": network}}
    _write(tmp_path, "int8_speed", document)
    text = page(tmp_path)
    assert "| minilm | any | hasten static / x | 0.9900 | nncf mixed / x | 0.9800 | 0.90 [0.85, 0.95] |" in text
    assert "**Slower** than the quickest peer: minilm in any runtime (0.90)." in text
    assert "torchao static" in text
    timed["hasten static / x"] = _latency(1.1, 1.05, 1.2)
    _write(tmp_path, "int8_speed", document)
    assert "**Slower** than the quickest peer: none." in page(tmp_path)
