"""Every benchmark still runs, at its smallest size, and ends with its numbers as JSON."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = {
    "exchange": ["--quick"],
    "gpu": ["--quick", "--device", "cpu"],
    "loader": ["--quick"],
    "minnorm": ["--quick"],
    "scale": ["--quick"],
    "step": ["--quick"],
    "strategies": ["--quick"],
    "trainer": ["--quick"],
}
"""Name -> the options of its smallest run."""
PARTS = {"loader_mosaicml", "loader_peers", "methods", "parameter_space", "ranks"}
"""Modules that the benchmarks use."""


def test_the_list_is_whole() -> None:
    modules = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"__init__"}
    assert modules == BENCHMARKS.keys() | PARTS


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_ends_with_its_numbers(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", *BENCHMARKS[name]]
    environment = os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stderr[-2000:]
    numbers = list(_numbers(json.loads(done.stdout.splitlines()[-1])))
    assert numbers
    assert all(math.isfinite(number) for number in numbers)


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part)
    elif isinstance(value, int | float):
        yield value
