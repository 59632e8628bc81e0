"""Checkpoints in an object store: what is whole there, what is kept, and what a fresh machine goes on from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.support.runtimes import ALONE
from tests.support.small_checkpoints import save
from trainer.errors import FaultError, UserError
from trainer.runtime.checkpoints import store as module
from trainer.runtime.checkpoints.folder import folder_of_step
from trainer.runtime.checkpoints.reading import find_newest
from trainer.runtime.checkpoints.store import Store, Uploader


@pytest.fixture(params=["memory://bucket/runs", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(module, "RETRY_AFTER_SECONDS", (0.0,))
    yield f"file://{tmp_path}/bucket" if request.param == "file" else request.param
    MemoryFileSystem.store.clear()


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A run's folder with three checkpoints and a record."""
    for step in (10, 20, 30):
        save(tmp_path / "run" / "checkpoints", step, keep=9)
    (tmp_path / "run" / "metrics.jsonl").write_text("as of 30")
    return tmp_path / "run"


def upload(url: str, run_dir: Path, *steps: int, keep: int = 2) -> list[str]:
    """What was said."""
    said: list[str] = []
    uploader = Uploader(Store(url, "run"), [run_dir / "metrics.jsonl", run_dir / "missing"], keep, said.append)
    for step in steps:
        uploader.offer(folder_of_step(run_dir / "checkpoints", step))
        uploader._thread.submit(lambda: None).result()  # Its turn comes before the next one is offered.
    uploader.finish()
    return said


def fetched(url: str, run_dir: Path) -> str | None:
    run_dir.mkdir(exist_ok=True)
    return Store(url, "run").fetch(run_dir / "checkpoints", run_dir, ["metrics.jsonl", "missing"])


def test_a_fresh_machine_goes_on_from_the_newest_step(url: str, here: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    assert fetched(url, there) is None
    assert upload(url, here, 10, 20, 30) == []
    assert fetched(url, there) == "step_00000030"
    assert (there / "metrics.jsonl").read_text() == "as of 30"
    mine, theirs = (find_newest(folder / "checkpoints", ALONE) for folder in (here, there))
    assert mine is not None
    assert theirs is not None
    assert theirs.snapshot.path.name == "step_00000030"
    assert (theirs.snapshot.model["weight"] == mine.snapshot.model["weight"]).all()
    files, root = fsspec.core.url_to_fs(f"{url}/run")
    names = {path.rpartition("/")[2] for path in files.ls(root, detail=False)}
    assert names == {"LATEST", "metrics.jsonl", "step_00000020", "step_00000030"}
    assert upload(url, here, 20, keep=1) == []
    assert fetched(url, tmp_path / "set_back") == "step_00000020"


def test_a_step_that_is_not_whole_is_never_the_newest(
    url: str, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(url, here, 10)
    files, _ = fsspec.core.url_to_fs(url)
    put = type(files).put_file

    def fails(self: Any, source: str, target: str, **options: Any) -> None:
        if target.endswith("step_00000020/manifest.json"):
            raise OSError("the bucket is full")
        put(self, source, target, **options)

    monkeypatch.setattr(type(files), "put_file", fails)
    with pytest.raises(FaultError, match=r"step_00000020 could not be uploaded(.|\n)*bucket is full"):
        upload(url, here, 20)
    assert fetched(url, tmp_path / "there") == "step_00000010"
    said = upload(url, here, 20, 30)
    assert len(said) == 1
    assert "the next checkpoint is uploaded again" in said[0]
    assert fetched(url, tmp_path / "later") == "step_00000030"


@pytest.mark.parametrize("name", ["../../etc", "step_", "step_x", "", "/tmp/step_00000001"])
def test_a_forged_name_leads_nowhere(url: str, here: Path, tmp_path: Path, name: str) -> None:
    upload(url, here, 10)
    files, root = fsspec.core.url_to_fs(url)
    files.pipe_file(f"{root}/run/LATEST", name.encode())
    with pytest.raises(UserError, match="names no checkpoint"):
        fetched(url, tmp_path / "there")
    assert not (tmp_path / "there" / "checkpoints").exists()


def test_a_damaged_copy_is_found_before_it_is_used(url: str, here: Path, tmp_path: Path) -> None:
    upload(url, here, 10)
    files, root = fsspec.core.url_to_fs(url)
    files.pipe_file(f"{root}/run/step_00000010/model_00000.safetensors", b"other")
    assert fetched(url, tmp_path / "there") == "step_00000010"
    with pytest.raises(UserError, match=r"model_00000.safetensors has 5 bytes"):
        find_newest(tmp_path / "there" / "checkpoints", ALONE)
    files.rm_file(f"{root}/run/step_00000010/manifest.json")
    with pytest.raises(FaultError, match="cannot be fetched"):
        fetched(url, tmp_path / "other")


def test_an_unknown_address_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match=r"checkpoint.upload=nowhere://x cannot be opened"):
        Store("nowhere://x", "run")
