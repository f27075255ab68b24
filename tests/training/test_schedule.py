import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hasten.training.options import Training
from hasten.training.schedule import lr_factor, set_rates


@given(st.integers(1, 500), st.floats(0, 0.9), st.sampled_from(["cosine", "onecycle", "constant"]))
def test_factor_stays_within_zero_and_the_peak(total: int, warmup: float, schedule: str) -> None:
    options = Training(schedule=schedule, warmup=warmup)  # type: ignore[arg-type]
    factors = [lr_factor(options, step, total) for step in range(total)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert max(factors[:-1] or [1.0]) > 0


@given(st.integers(10, 500), st.floats(0.1, 0.9))
def test_warmup_rises_to_the_peak_and_cosine_falls_after_it(total: int, warmup: float) -> None:
    factors = [lr_factor(Training(warmup=warmup), step, total) for step in range(total)]
    peak = round(warmup * total)
    assert factors[peak] == 1.0
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


@pytest.mark.parametrize("total", [20, 97])
def test_one_cycle_equals_the_reference_implementation(total: int) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    reference = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(reference, max_lr=0.1, total_steps=total)
    ours = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    options = Training(lr=0.1, schedule="onecycle")
    for step in range(total):
        set_rates(ours, options, step, total)
        assert ours.param_groups[0]["lr"] == pytest.approx(reference.param_groups[0]["lr"], abs=1e-6)
        assert ours.param_groups[0]["momentum"] == pytest.approx(reference.param_groups[0]["momentum"], abs=5e-3)
        reference.step()
        if step < total - 1:
            scheduler.step()
