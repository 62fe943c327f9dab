"""Where a result comes from: versions, hardware, command and commit."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import localmix
from localmix.tasks.classification.parallel import cpu_cores


def environment(device: str) -> dict[str, Any]:
    """Versions and hardware, in plain values."""
    packages = {
        name: version(name) for name in ("torch", "triton", "timm", "lightning", "numpy", "natten", "flash-attn")
    }
    return {
        "versions": {
            "localmix": localmix.__version__,
            "python": platform.python_version(),
            **{name: number for name, number in packages.items() if number},
        },
        "hardware": {
            "platform": platform.platform(),
            "cpu": _cpu(),
            "cpu_cores": cpu_cores(),
            "threads": torch.get_num_threads(),
            "device": device,
            "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        },
    }


def version(package: str) -> str | None:
    """Of an installed package; None if it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def command() -> str:
    """The command line of this process."""
    program = Path(sys.argv[0]).name
    return shlex.join(["localmix" if program == "__main__.py" else program, *sys.argv[1:]])


def commit() -> str | None:
    """Commit of the checkout that this package runs from, with "+" if it has changes; None where there is none."""
    root = Path(localmix.__file__).parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu() -> str:
    """Name of the processor, and the vectors that PyTorch uses on it: generations of a processor may share a name."""
    vectors = torch.backends.cpu.get_cpu_capability()
    return f"{cpu_name()} with {vectors}" if vectors.startswith("AVX") else cpu_name()


def cpu_name() -> str:
    """Of the processor, as the operating system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
