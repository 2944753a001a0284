"""The scanner as plain Python, whether or not a compiled one lies beside it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType


def load_plain() -> ModuleType:
    """``protocol/frames.py`` loaded from its source, under a name of its own."""
    path = Path(__file__).resolve().parents[2] / "gatekeeper" / "protocol" / "frames.py"
    spec = importlib.util.spec_from_file_location("plain_frames", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
