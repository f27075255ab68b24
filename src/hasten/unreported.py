"""Libraries that report their use to their makers do not report it from here.

What a model is made of is nobody else's business, and OpenVINO's reports are sent by a forked process each, with a
second to wait for an answer, while programs are timed.
"""

import importlib
import os
import sys
from typing import Any

from hasten.errors import InvalidInput

_REPORTER = "openvino_telemetry"


def import_openvino() -> Any:
    """The module `openvino`, without its reporter; as it is, where the process had imported it already."""
    if "openvino" in sys.modules or _REPORTER in sys.modules:
        return importlib.import_module("openvino")
    modules: dict[str, Any] = sys.modules
    modules[_REPORTER] = None  # as if it were not installed; OpenVINO is made for that
    try:
        return importlib.import_module("openvino")
    finally:
        del modules[_REPORTER]


def import_ray(*parts: str) -> Any:
    """The module `ray` with `parts` of it; clusters that are started here send no usage statistics.

    Raises:
        InvalidInput: Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        for part in parts:
            importlib.import_module(f"ray.{part}")
        return importlib.import_module("ray")
    except ImportError:
        raise InvalidInput("What runs on Ray needs: pip install 'hasten[ray]'") from None
