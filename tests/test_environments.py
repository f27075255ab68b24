"""Environments: pinned lists, markers, and what crosses the border."""

import venv
from pathlib import Path

import numpy as np
import pytest

from hasten import environments
from hasten.errors import InvalidInput
from hasten.recipe import make_target, targets


def test_every_pinned_list_belongs_to_a_stack_and_pins_its_main_packages() -> None:
    folder = Path(environments.__file__).parent / "stacks"
    for name in environments.names():
        assert (folder / f"{name}.py").is_file()
        assert "==" in environments.requirements(name)


def test_every_target_with_a_stack_has_a_pinned_list() -> None:
    stacks = {getattr(part, "stack", "") for part in targets().values()} - {""}
    assert stacks <= set(environments.names())


def test_an_environment_of_an_older_list_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_ENVS", str(tmp_path))
    python = environments.python_of("xla")
    python.parent.mkdir(parents=True)
    python.touch()
    assert environments.missing("xla") == "hasten targets install xla"
    (tmp_path / "xla" / "hasten-xla.txt").write_text(environments.requirements("xla"))
    assert environments.missing("xla") == ""
    (tmp_path / "xla" / "hasten-xla.txt").write_text("jax==0.1\n")
    assert environments.missing("xla") == "hasten targets install xla"


def test_an_unknown_environment_is_named() -> None:
    with pytest.raises(InvalidInput, match="Did you mean 'tpu'"):
        environments.requirements("tpus")


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> str:
    """A stack that runs in this interpreter."""
    import sys

    monkeypatch.setattr(environments, "missing", lambda name: "")
    monkeypatch.setattr(environments, "python_of", lambda name: Path(sys.executable))
    return "_mirror"


def test_values_and_errors_cross_the_border(child: str) -> None:
    with environments.Process(child) as process:
        assert process.call("double", value=21) == 42
        with pytest.raises(InvalidInput, match="too small"):
            process.call("double", value=-1)
        with pytest.raises(environments.StackFailed, match="_mirror: TypeError"):
            process.call("double", value=None)
        assert process.call("double", value=1) == 2


def test_a_child_that_dies_is_reported_with_its_last_words(child: str) -> None:
    with (
        environments.Process(child) as process,
        pytest.raises(environments.StackFailed, match=r"ended with 3.*goodbye"),
    ):
        process.call("die", words="goodbye")


def test_arrays_cross_the_border_unchanged(child: str, tmp_path: Path) -> None:
    program = environments.load(child, tmp_path)
    x = np.arange(6, dtype=np.int8).reshape(2, 3)
    y = np.array([[1.5, np.nan]], np.float32)
    back = program(x, y)
    np.testing.assert_array_equal(back[0], x)
    np.testing.assert_array_equal(back[1], y)
    assert back[0].dtype == np.int8


def test_the_child_sees_no_package_beside_hasten(child: str) -> None:
    with environments.Process(child) as process:
        assert process.call("first_path") not in (str(Path(environments.__file__).parent),)


def test_a_program_without_a_stack_is_timed_in_this_interpreter() -> None:
    import sys

    assert environments.command(make_target("null"), "m") == [sys.executable, "-m", "m"]


@pytest.fixture
def installable(child: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A stack that is not installed, of which nothing need be downloaded."""
    monkeypatch.setenv("HASTEN_ENVS", str(tmp_path))
    monkeypatch.setattr(venv, "create", lambda folder, **_: Path(folder).mkdir())
    monkeypatch.setattr(environments, "requirements", lambda name: "")
    return child


def test_tools_run_once_before_the_environment_is_used(
    installable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = tmp_path / "prepared"
    monkeypatch.setenv("HASTEN_MIRROR_PREPARED", str(prepared))
    environments.install(installable)
    assert prepared.exists()
    assert environments._marker(installable).exists()


def test_an_environment_whose_tools_do_not_run_counts_as_missing(
    installable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HASTEN_MIRROR_PREPARED", str(tmp_path / "no folder" / "prepared"))
    with pytest.raises(environments.StackFailed):
        environments.install(installable)
    assert not environments._marker(installable).exists()
