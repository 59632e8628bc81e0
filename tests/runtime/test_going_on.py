"""From which checkpoint a run goes on, and which ones are never removed."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ranks import run_ranks
from tests.support.runtimes import ALONE, a_runtime
from tests.support.small_checkpoints import save
from trainer.errors import FaultError, UserError
from trainer.files import write_durably
from trainer.runtime import shared_folder
from trainer.runtime.checkpoints import saving, writing
from trainer.runtime.checkpoints.folder import latest, published, set_aside
from trainer.runtime.checkpoints.reading import Found, find_newest


def newest(folder: Path) -> Found:
    found = find_newest(folder, ALONE)
    assert found
    return found


def damage(folder: Path, step: int) -> None:
    file = folder / f"step_{step:08d}" / "model_00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("text", [None, "", "step_00000030", "../elsewhere", "step_2", "\xff", "x" * 5000])
def test_without_a_valid_pointer_nothing_starts_and_the_newest_whole_checkpoint_is_named(
    text: str | None, two: Path
) -> None:
    (two / "LATEST").unlink()
    if text is not None:
        (two / "LATEST").write_bytes(text.encode("latin1"))
    damage(two, 20)
    with pytest.raises(UserError) as caught:
        find_newest(two, ALONE)
    assert f"echo step_00000010 > {two / 'LATEST'}" in str(caught.value)
    assert "name=ANOTHER_NAME" in str(caught.value)
    assert len(published(two)) == 2


def test_a_run_without_checkpoints_starts(tmp_path: Path) -> None:
    assert find_newest(tmp_path, ALONE) is None
    (tmp_path / "step_00000010.tmp").mkdir()  # killed in its first save
    assert find_newest(tmp_path, ALONE) is None


def test_a_kill_between_the_first_rename_and_the_pointers_loses_nothing(tmp_path: Path) -> None:
    save(tmp_path, 10)
    (tmp_path / "LATEST").rename(tmp_path / "LATEST.tmp")
    assert newest(tmp_path).snapshot.state["step"] == 10
    assert latest(tmp_path) == tmp_path / "step_00000010"


def test_the_pointer_to_the_first_checkpoint_is_not_written_while_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill in the middle of such a write would leave a checkpoint that nothing names."""
    published_before: list[int] = []

    def watched(path: Path, content: bytes) -> None:
        published_before.append(len(published(tmp_path)))
        write_durably(path, content)

    monkeypatch.setattr("trainer.runtime.checkpoints.folder.write_durably", watched)
    save(tmp_path, 10)
    assert published_before == [0]


def test_a_damaged_newest_is_passed_over_and_said(two: Path) -> None:
    damage(two, 20)
    found = newest(two)
    assert found.snapshot.state["step"] == 10
    assert "has changed since it was written" in found.damaged[two / "step_00000020"]


def test_where_none_is_whole_each_is_named(two: Path) -> None:
    damage(two, 20)
    (two / "step_00000010" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole") as caught:
        find_newest(two, ALONE)
    assert "step_00000010 is not complete" in str(caught.value)
    assert "step_00000020 has changed" in str(caught.value)


def test_what_another_run_wrote_or_is_damaged_is_never_removed(two: Path) -> None:
    save(two, 15, run="another run", keep=9)
    (two / "step_00000010" / "manifest.json").write_text("{")
    for step in (30, 40):
        save(two, step, keep=1)
    assert [path.name for path in published(two)] == ["step_00000010", "step_00000015", "step_00000040"]


def test_what_stands_in_the_place_of_a_save_is_never_replaced(two: Path) -> None:
    with pytest.raises(FaultError, match="this run did not write it"):
        save(two, 20, run="another run")
    assert newest(two).snapshot.run == "a run"
    assert set_aside(two / "step_00000020").name == "step_00000020.aside"


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[Path]:
    """A folder of somebody else's, unchanged at the end."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "model_00000.safetensors").write_text("precious")
    yield folder
    assert [path.read_text() for path in folder.iterdir()] == ["precious"]


def test_a_link_in_the_place_of_an_unfinished_save_is_not_followed(two: Path, theirs: Path) -> None:
    (two / "step_00000030.tmp").symlink_to(theirs)
    with pytest.raises(FaultError, match="it is a link"):
        save(two, 30)
    save(two, 40)  # prunes unfinished saves


def test_links_in_the_place_of_files_are_not_followed(two: Path, theirs: Path) -> None:
    (two / "step_00000030.tmp").mkdir()
    for name in ("model_00000.safetensors", "state.safetensors"):
        (two / "step_00000030.tmp" / name).symlink_to(theirs / "model_00000.safetensors")
    (two / "LATEST.tmp").symlink_to(theirs / "model_00000.safetensors")
    save(two, 30)
    assert newest(two).snapshot.state["step"] == 30


def test_nothing_is_published_that_is_not_there(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a run's folder is not shared: what another host wrote is missing here."""
    monkeypatch.setattr(writing, "SEEN_WITHIN_SECONDS", 0.0)
    write_files = saving.write_files

    def elsewhere(folder: Path, contents: Any) -> Any:
        sums = write_files(folder, contents)
        (folder / "model_00000.safetensors").unlink()
        return sums

    monkeypatch.setattr(saving, "write_files", elsewhere)
    with pytest.raises(FaultError, match="one that all hosts share"):
        save(two, 30)
    assert latest(two) == two / "step_00000020"


@pytest.mark.parametrize(("code", "num_tries"), [(errno.EIO, 3), (errno.EACCES, 1)])
def test_a_write_is_tried_again_where_the_error_may_pass(
    code: int, num_tries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []
    write_files = saving.write_files

    def fails_twice(folder: Path, contents: Any) -> Any:
        tries.append(code)
        if len(tries) < 3:
            raise OSError(code, os.strerror(code))
        return write_files(folder, contents)

    monkeypatch.setattr(saving, "RETRY_AFTER_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(saving, "write_files", fails_twice)
    if code == errno.EIO:
        save(tmp_path, 1)
        assert latest(tmp_path)
    else:
        with pytest.raises(FaultError) as caught:
            save(tmp_path, 1)
        assert caught.value.exit_code == 3
    assert len(tries) == num_tries


def sees_own_folder(rank: int, folder: Path) -> str:
    shared_folder.SEEN_WITHIN_SECONDS = 0.0  # type: ignore[attr-defined]
    shared_folder.check_shared(folder / "shared" / "run", a_runtime(rank, 2))
    try:
        shared_folder.check_shared(folder / f"of rank {rank}" / "run", a_runtime(rank, 2))
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.processes
def test_a_run_folder_that_is_not_shared_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    for said in run_ranks(2, sees_own_folder, tmp_path):
        assert "is not shared" in said
    assert not list(tmp_path.iterdir())
