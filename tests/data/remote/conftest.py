from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.data_server import Server, serving
from tests.support.tiny_data import write_tiny
from trainer.data.remote import cache, transfer


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "ATTEMPTS", 2)
    monkeypatch.setattr(transfer, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(cache, "POLL_SECONDS", 0.01)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote") / "tiny"
    write_tiny(folder)
    return folder


@pytest.fixture
def server(original: Path) -> Iterator[Server]:
    with serving(original) as server:
        yield server
