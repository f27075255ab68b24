"""What this machine is: cores, instruction sets, memory, versions. Every measurement carries it."""

import functools
import os
import platform
from pathlib import Path
from typing import Any

_VERSIONED = ("hasten", "torch", "torchao", "onnx", "onnxruntime", "openvino", "numpy")


def usable_cores() -> int:
    """Cores this process may use at a time: those it may run on, and no more than its container's share of time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return int(min(cores, max(1, _quota())))


def _quota(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores' worth of time that a container's cgroup grants (`docker --cpus`); infinite where there is no limit."""
    files = (root / "cpu.max",), (root / "cpu" / "cpu.cfs_quota_us", root / "cpu" / "cpu.cfs_period_us")
    for group in files:  # of cgroup v2, of v1
        if all(file.is_file() for file in group):
            quota, period = " ".join(file.read_text() for file in group).split()
            return float("inf") if quota in ("max", "-1") else int(quota) / int(period)
    return float("inf")


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Instruction-set flags as Linux names them; empty where /proc/cpuinfo does not exist."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return frozenset()
    lines = path.read_text().splitlines()
    found = next((line for line in lines if line.startswith(("flags", "Features"))), ":")
    return frozenset(found.split(":", 1)[1].split())


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware (AVX-512 BF16, AMX, or Arm BF16)."""
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def cpu_saturates_int8() -> bool:
    """Whether the CPU adds pairs of u8 x s8 products in 16 bits that saturate: x86 without VNNI or AMX.

    False where the instruction sets are not known.
    """
    flags = cpu_flags()
    return "avx2" in flags and not flags & {"avx512_vnni", "avx_vnni", "amx_int8"}


def has_nvidia_gpu() -> bool:
    """Whether the driver of an NVIDIA GPU is loaded; says nothing about which libraries can use it."""
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-gpu"))


def cpu_name() -> str:
    """The processor's model name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    found = next((line for line in lines if line.startswith("model name")), "")
    return found.split(":", 1)[1].strip() if found else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of Python and of the installed libraries that decide speed or numbers."""
    import importlib.metadata  # here and not above: loading a program should not wait for what it does not use

    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def fingerprint() -> dict[str, Any]:
    """The device that a measurement was taken on, as plain values for JSON."""
    import psutil

    interesting = {
        "avx2",
        "avx512f",
        "avx512_vnni",
        "avx_vnni",
        "avx512_bf16",
        "amx_int8",
        "amx_bf16",
        "asimddp",
        "bf16",
    }
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "instruction_sets": sorted(cpu_flags() & interesting),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
    }
