"""What a run was made with: code, packages, machine. Holds no user or host names, no paths, no environment."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "accelerate",
    "bert-score",
    "datasets",
    "dep-bench",
    "evaluate",
    "nltk",
    "numpy",
    "pandas",
    "peft",
    "pyarrow",
    "rank-bm25",
    "rouge-score",
    "sacrebleu",
    "safetensors",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
)
"""Packages whose version can change an output or a speed."""


def provenance() -> dict[str, Any]:
    """Commit, versions and machine as JSON values. Never fails: what cannot be found out is None.

    Keys: git {commit, dirty} or None; packages {name: version}; python; platform; cpu; cores (usable by this
    process); device (name of the GPU, only if torch is already imported and sees one).
    """
    return {
        "git": _git(Path(__file__).resolve().parent.parent),
        "packages": _packages(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu(),
        "cores": cores(),
        "device": _device(),
    }


def _git(root: Path) -> dict[str, Any] | None:
    """Commit and dirty flag if `root` itself is a checkout; an installed copy inside somebody's checkout is not."""
    if not (root / ".git").exists():
        return None
    commit = _git_output(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    status = _git_output(root, "status", "--porcelain")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def _git_output(root: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu() -> str | None:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip() or None
    except OSError:
        pass
    if sys.platform == "darwin":
        try:
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() or None
    return platform.processor() or None


def cores() -> int | None:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _device() -> str | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return str(torch.cuda.get_device_name())
