import pytest
import torch

from hasten.training import quiet
from hasten.training.progress import Progress


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console.Console.is_terminal", True)


def run(wanted: bool) -> None:
    with Progress(wanted, total=3, done=0) as progress:
        for step in range(3):
            progress.advance(torch.tensor(4.0 * (step + 1)), step + 1, 0)


@pytest.mark.usefixtures("terminal")
def test_shows_loss_steps_and_remaining_time_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    run(True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "epoch 1" in shown.err
    assert "loss 4.0000" in shown.err
    assert "3/3" in shown.err


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("wanted", [True, False])
def test_silent_where_not_wanted(capsys: pytest.CaptureFixture[str], wanted: bool) -> None:
    if wanted:
        with quiet():
            run(True)
    else:
        run(False)
    assert capsys.readouterr() == ("", "")


def test_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    run(True)
    assert capsys.readouterr() == ("", "")
