"""Whoever is killed leaves no process behind, also where a child is in a native call and has started others."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from hasten.children import Child, readable

CHILD = """
import ctypes, os, subprocess, sys
from hasten.children import follow_parent
follow_parent()
other = subprocess.Popen(["sleep", "600"])
print(os.getpid(), other.pid, flush=True)
ctypes.PyDLL(None).sleep(600)  # holds the interpreter's lock: no thread of this process can run Python
"""
PARENT = f"""
import sys, time
from hasten.children import Child
child = Child([sys.executable, "-c", {CHILD!r}])
print(child.stdout.readline().decode(), flush=True)
time.sleep(600)
"""


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _end(pids: list[int], patience_s: float = 60) -> list[int]:
    """Those that still run after `patience_s`."""
    end = time.monotonic() + patience_s
    while (left := [pid for pid in pids if _runs(pid)]) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def test_a_killed_parent_takes_its_children_along() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pids = [int(x) for x in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(_runs(pid) for pid in pids)
        parent.kill()
        left = _end(pids)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left


def test_a_child_that_hangs_ends_with_what_it_started() -> None:
    from hasten.children import Child

    child = Child([sys.executable, "-c", CHILD])
    assert child.stdout is not None
    pids = [int(x) for x in child.stdout.readline().split()]
    child.end(patience_s=0)
    assert child.returncode == -signal.SIGKILL
    assert not _end(pids)


def test_a_child_that_behaves_is_not_killed() -> None:
    from hasten.children import Child

    child = Child(
        [sys.executable, "-c", "import sys; from hasten.children import follow_parent as f; f(); sys.stdin.read()"]
    )
    child.end(patience_s=60)
    assert child.returncode == 0


def test_a_child_is_ended_while_a_thread_waits_for_its_answer() -> None:
    child = Child([sys.executable, "-c", "import time; time.sleep(60)"])
    assert child.stdout is not None
    reader = threading.Thread(target=child.stdout.readline)
    reader.start()
    ending = threading.Thread(target=child.end, args=(0.2,), daemon=True)
    ending.start()
    ending.join(20)
    assert not ending.is_alive()
    reader.join(20)
    assert child.returncode == -signal.SIGKILL


def test_a_child_of_a_process_with_many_open_files_lives() -> None:
    """Its lifeline and its pipes then have numbers above 1023, which `select.select` does not take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip(f"this system allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    code = "from hasten.children import follow_parent; follow_parent(); print('lives')"
    child = Child([sys.executable, "-c", code])
    try:
        assert child.stdout is not None
        assert child.stdout.fileno() > 1023
        assert readable(child.stdout, 60)
        assert child.stdout.readline() == b"lives\n"
    finally:
        child.end(10)
        for handle in opened:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
