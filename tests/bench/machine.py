"""Where the figures come from: without it they mean nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path


def describe() -> list[tuple[str, str]]:
    """Label and text, in the order to print."""
    usable = len(os.sched_getaffinity(0))
    return [
        ("CPU", f"{_cpu_model()}, {usable} of {os.cpu_count()} cores usable"),
        ("memory", f"{_memory_gib():.0f} GiB"),
        ("kernel", f"{platform.system()} {platform.release()}"),
        ("Python", f"{platform.python_implementation()} {platform.python_version()}"),
        ("uvloop", importlib.metadata.version("uvloop")),
        ("HAProxy", _haproxy_version()),
        ("gate's scanner", scanner()),
        ("load average", " ".join(f"{load:.2f}" for load in os.getloadavg())),
    ]


def scanner() -> str:
    """Which form of ``gatekeeper.protocol.frames`` the installed gate runs."""
    question = "from gatekeeper.protocol.frames import COMPILED; print(COMPILED)"
    # From elsewhere, as the console script is run: not the checkout that lies in the way.
    done = subprocess.run(
        [sys.executable, "-c", question], cwd="/", capture_output=True, text=True, check=False
    )
    if done.returncode:
        return "absent"
    return "compiled" if done.stdout.strip() == "True" else "plain Python"


def _cpu_model() -> str:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _haproxy_version() -> str:
    try:
        done = subprocess.run(["haproxy", "-v"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "absent"
    found = re.search(r"version (\S+)", done.stdout)
    return found[1] if found else "unknown"
