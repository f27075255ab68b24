"""What every command owes its user: help on one screen with examples that are right, results as JSON, exit codes."""

import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from typer.testing import CliRunner

from hasten.artifact import Artifact
from hasten.cli import app
from hasten.usage import EXAMPLES, waiting

ROOT = Path(__file__).parent.parent
TALLEST = 32  # lines of a terminal of 80 columns


def _commands(group: Any, words: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, command in getattr(group, "commands", {}).items():
        found[f"{words} {name}".strip()] = command
        found |= _commands(command, f"{words} {name}".strip())
    return found


COMMANDS = _commands(typer.main.get_command(app))


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80"}, catch_exceptions=False)


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_a_screen(name: str) -> None:
    shown = invoke(*name.split(), "--help").output
    assert len(shown.splitlines()) <= TALLEST
    assert max(map(len, shown.splitlines())) <= 80
    assert "..." not in shown.replace("ARTIFACT...", "").replace("NAME...", "").replace("[ARGS]...", ""), "cut short"
    if name:
        assert "Examples:" in shown
        assert all(f"  {line}\n" in shown for line in EXAMPLES[name.split()[-1]]), "broken into lines elsewhere"


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_examples_are_valid(line: str) -> None:
    program, *words = shlex.split(line)
    assert program == "hasten"
    name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
    # Parsing alone: names of files are not looked at before a command runs.
    COMMANDS[name].make_context(name, words[len(name.split()) :], resilient_parsing=False)


def test_long_commands_can_be_quiet_and_answer_in_json() -> None:
    options = {name: {o for p in command.params for o in p.opts} for name, command in COMMANDS.items()}
    for name in ("run", "apply", "verify", "bench", "report", "doctor", "batch"):
        assert {"--quiet", "--json"} <= options[name], name
    for name in ("targets", "techniques"):
        assert "--json" in options[name], name


def test_verify_and_apply_and_batch_print_only_json(digits_artifact: Artifact, artifact: Path, tmp_path: Path) -> None:
    done = invoke("verify", str(digits_artifact.path), "--json")
    found = json.loads(done.stdout)
    assert found["files"] >= 4
    assert found["certificate"] is None
    (tmp_path / "recipe.yaml").write_text("target: onnxruntime")
    arguments = ["apply", str(tmp_path / "recipe.yaml"), str(ROOT / "examples" / "digits.py")]
    done = invoke(*arguments, "--out", str(tmp_path / "x.hasten"), "--json")
    assert json.loads(done.stdout) == {"artifact": str(tmp_path / "x.hasten")}
    assert done.stderr == ""
    np.save(tmp_path / "x.npy", np.zeros((10, 4), np.float32))
    done = invoke("batch", str(artifact), str(tmp_path / "x.npy"), str(tmp_path / "out"), "--json")
    assert json.loads(done.stdout)["rows"] == 10


def test_what_cannot_be_applied_is_refused_before_any_step(tmp_path: Path) -> None:
    from hasten.errors import InvalidInput

    (tmp_path / "recipe.yaml").write_text("steps: [quantize]\ntarget: onnxruntime")
    (tmp_path / "there").mkdir()
    arguments = ["apply", str(tmp_path / "recipe.yaml"), str(ROOT / "examples" / "digits.py")]
    with pytest.raises(InvalidInput, match="must not exist yet"):
        invoke(*arguments, "--out", str(tmp_path / "there"))


def test_interrupted_is_130(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\ndef task():\n    print('begun', flush=True)\n    time.sleep(60)\n")
    command = [sys.executable, "-m", "hasten.cli", "run", "slow.py", "--quiet"]
    # A shell starts its background jobs with SIGINT ignored, and the tests may be one.
    listens = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, preexec_fn=listens, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_documented_exit_codes_are_those_of_the_tests() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    section = page[page.index("## Exit codes") : page.index("## Output")]
    assert re.findall(r"^\| (\d+) \|", section, re.MULTILINE) == ["0", "1", "2", "130"]


def test_the_version_is_told() -> None:
    from hasten import __version__

    assert invoke("--version").output == f"hasten {__version__}\n"


def test_completion_is_offered() -> None:
    command = [sys.executable, "-m", "hasten.cli", "--show-completion", "bash"]
    # Else typer asks which shell it runs in, which need not be one that completes.
    environment = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert "complete" in done.stdout + done.stderr


def test_waiting_shows_how_long_it_should_take(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    with waiting("doing it", quiet=False, expected_s=12.3) as say:
        say("doing the rest")
        time.sleep(0.15)
    shown = capsys.readouterr().err
    assert "doing the rest" in shown
    assert "of about 12 s" in shown
    with waiting("doing it", quiet=True):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["targets", "techniques"])
def test_lists_have_a_line_for_each_and_tell_everything_about_one(kind: str) -> None:
    listed = json.loads(invoke(kind, "--json").output)
    lines = invoke(kind).output.splitlines()
    for name, entry in listed.items():
        assert sum(line.split()[0] == name for line in lines) == 1
        told = invoke(kind, name).output
        assert " ".join(entry["what"].split()) in " ".join(told.split())
        assert all(f"  {option} (" in told for option in entry["options"])
        assert json.loads(invoke(kind, name, "--json").output) == {name: entry}
    assert max(map(len, lines)) <= 80
    assert all(not line.startswith("  ") or len(line.split()) > 2 for line in lines)


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    from hasten.errors import InvalidInput

    with pytest.raises(InvalidInput, match="Did you mean 'litert'"):
        invoke("targets", "litrt")
    with pytest.raises(InvalidInput, match="Did you mean 'prune_filters'"):
        invoke("techniques", "prune_filter")
