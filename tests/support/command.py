"""The real `paretrain` command, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]

Command = Callable[..., subprocess.CompletedProcess[str]]
"""The type of the fixture `paretrain`."""


def command_line(*arguments: object) -> list[str]:
    """`paretrain ...` of the Python that runs the tests."""
    return [sys.executable, "-m", "trainer", *map(str, arguments)]


def environment() -> dict[str, str]:
    """This process's environment, as a user's shell has it: without a launcher's variables."""
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_USE_CPU")
    return {key: value for key, value in os.environ.items() if key not in launcher} | {"OMP_NUM_THREADS": "1"}


def run_command(
    *arguments: object, limit_seconds: float = 120, env_too: Mapping[str, str] | None = None, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run the command in the repository, with a hard time limit and some more environment variables."""
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        command_line(*arguments),
        cwd=ROOT,
        env=environment() | dict(env_too or {}),
        capture_output=True,
        text=True,
        timeout=limit_seconds,
        **options,
    )
