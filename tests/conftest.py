"""Which tests start processes of their own: `make quick` leaves these out."""

import resource
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

PROCESSES = tuple(Path(__file__).parent / name for name in ("distributed", "e2e", "launch"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(item.path.is_relative_to(folder) for folder in PROCESSES):
            item.add_marker("processes")


@pytest.fixture(autouse=True)
def _starts_no_process_unless_marked(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.node.get_closest_marker("processes"):
        yield
        return
    before = _started()
    yield
    assert _started() == before, "it started a process: mark it with @pytest.mark.processes"


def _started() -> tuple[int, set[int]]:
    """Return what changes whenever a process of ours ends, and those that live."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt
    return ended, {child.pid for child in psutil.Process().children()}
