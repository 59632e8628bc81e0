"""Fixtures of the tests of checkpoints."""

from pathlib import Path

import pytest

from tests.support.small_checkpoints import save


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """The folder of two checkpoints, of steps 10 and 20."""
    folder = tmp_path / "checkpoints"
    save(folder, 10)
    save(folder, 20)
    return folder
