"""A slice of the fuzz test, with the seed of the whole: `make test-fuzz`."""

import subprocess
import sys

import pytest

from tests.support.command import ROOT, environment


@pytest.mark.processes
def test_nothing_that_is_handed_to_us_brings_us_down() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--cases", "50", "--seconds", "60"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
