"""Which version of this project's code runs: as written into a wheel, an image or a copy, or else as git says."""

import subprocess
from pathlib import Path
from typing import Any

from trainer.files import read_json

FILE = "code_version.json"
"""Beside this module, in copies that git does not know: {"commit": ..., "dirty": ...}."""


def code_version() -> dict[str, Any] | None:
    """Return the commit of this project, and whether the code was changed since; None where nobody knows it."""
    try:
        found = read_json(Path(__file__).with_name(FILE))
    except FileNotFoundError:
        return git_state(Path(__file__).parent)
    return found if isinstance(found, dict) else None


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the commit of a folder and whether it was changed since; None outside a git checkout."""
    options: dict[str, Any] = {"cwd": folder, "capture_output": True, "text": True, "check": True}
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **options)
        status = subprocess.run(["git", "status", "--porcelain"], **options)
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit.stdout.strip(), "dirty": bool(status.stdout.strip())}
