"""What was verified is what is used, whatever happens to the files afterwards."""

import errno
import io
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.loaders import train_loader
from tests.support.rich_data import write_rich
from tests.support.tiny_data import expected_digits, sign, write_tiny
from trainer.data.format import faults, tables
from trainer.data.format.manifest import MANIFEST_NAME, read_manifest
from trainer.data.format.tables import StoredTable, load_index
from trainer.data.format.verify import verify_shards
from trainer.errors import UserError

LABELS, INDEX = "train.labels.npy", "train.index.npy"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every table counts as too large for memory, and has blocks of a few rows."""
    monkeypatch.setattr(tables, "MAX_BYTES_IN_MEMORY", 0)
    monkeypatch.setattr(tables, "BLOCK_BYTES", 128)


def rewrite(path: Path, change: Callable[[np.ndarray], Any]) -> None:
    array = np.load(path)
    change(array)
    np.save(path, array)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.processes)])
@pytest.mark.parametrize("keep", [None, 0, 130])
def test_tables_changed_in_place_or_cut_short_change_nothing(folder: Path, workers: int, keep: int | None) -> None:
    with closing(train_loader(folder, tasks=["digit"], global_batch=5, seed=0, workers=workers)) as loader:
        for name in (LABELS, INDEX):
            with (folder / name).open("r+b") as file:
                if keep is None:
                    file.write(bytes((folder / name).stat().st_size))
                else:
                    file.truncate(keep)
        for _ in range(6):
            batch = next(loader)
            assert batch.targets["digit"].tolist() == expected_digits(batch.sample_ids_B.tolist())
        assert not loader.streams[0].bad_samples.total


@pytest.mark.usefixtures("on_disk")
def test_a_table_on_the_disk_is_the_same_table(tmp_path: Path) -> None:
    write_rich(tmp_path)
    manifest = read_manifest(tmp_path)
    verify_shards(tmp_path, manifest, checksum=True)
    for table, name in zip(load_index(tmp_path, manifest, "train"), (INDEX, LABELS), strict=True):
        assert isinstance(table, StoredTable)
        expected = np.load(tmp_path / name)
        assert len(table) == len(expected)
        for wanted in (slice(None), slice(3, 7), slice(5, 5), np.array([11, 0, -1, 4]), np.array([], np.int64)):
            assert table[wanted].tobytes() == expected[wanted].tobytes()


@pytest.mark.usefixtures("on_disk")
@pytest.mark.parametrize("cut", [False, True])
def test_a_table_on_the_disk_that_changes_is_refused_when_it_is_read(folder: Path, cut: bool) -> None:
    index_NM, _ = load_index(folder, read_manifest(folder), "train")
    before = index_NM[np.array([0])].tobytes()
    with (folder / INDEX).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.truncate() if cut else file.write(b"\xff")
    assert index_NM[np.array([0])].tobytes() == before
    with pytest.raises(UserError, match=r"train.index.npy: byte \d+: its content has changed since it was verified"):
        index_NM[np.array([22])]


@pytest.mark.long
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (LABELS, lambda table: table.__setitem__((7, 1), 10), "sample 7: label of task 'digit' should be a class"),
        (LABELS, lambda table: table.__setitem__((3, 0), -2), "sample 3: label of task 'even' should be a class"),
        (INDEX, lambda table: table["offset"].__setitem__((4, 0), 20_475), "sample 4 has 140 bytes at byte 20475"),
        (INDEX, lambda table: table["offset"].__setitem__((4, 0), 2**64 - 1), "sample 4 has 140 bytes at byte 184467"),
        (INDEX, lambda table: table["bytes"].__setitem__((9, 0), 2**32 - 1), "sample 9 has 4294967295 bytes at byte"),
        (INDEX, lambda table: table["shard"].__setitem__((22, 0), 5), "sample 22 is in shard 5; the manifest has 5"),
        (INDEX, lambda table: table["shard"].__setitem__((22, 0), 3), "says 5 samples, the index has 6"),
        (INDEX, lambda table: table.__setitem__([0, 22], table[[22, 0]]), "not in the order of the manifest's shards"),
    ],
)
def test_numbers_that_cannot_be_are_refused_at_load(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Any], Any], said: str, stored: bool
) -> None:
    """Whoever made them gave them the right checksum, and `verify: size` reads no shard."""
    if stored:
        monkeypatch.setattr(tables, "MAX_BYTES_IN_MEMORY", 0)
    rewrite(folder / name, change)
    sign(folder)
    with pytest.raises(UserError) as error:
        verify_shards(folder, read_manifest(folder), checksum=False)
    assert said in str(error.value)


@pytest.mark.parametrize("value", [np.inf, 1e38])
def test_numbers_that_float32_cannot_work_with_are_refused(tmp_path: Path, value: float) -> None:
    write_rich(tmp_path)
    rewrite(tmp_path / LABELS, lambda table: table.__setitem__((2, 1), value))
    sign(tmp_path)
    with pytest.raises(UserError, match="sample 2: label of task 'weight' should be a finite number"):
        load_index(tmp_path, read_manifest(tmp_path), "train")


@pytest.mark.long
@pytest.mark.parametrize("name", [LABELS, INDEX, MANIFEST_NAME, "train-000000.tar"])
@pytest.mark.parametrize("what", ["fifo", "device", "folder", "loop", "link to nothing"])
def test_what_is_no_file_is_refused_and_not_waited_for(folder: Path, name: str, what: str) -> None:
    (folder / name).unlink()
    if what == "fifo":
        os.mkfifo(folder / name)
    elif what == "folder":
        (folder / name).mkdir()
    else:
        (folder / name).symlink_to({"device": "/dev/zero", "loop": name, "link to nothing": "nowhere"}[what])
    with pytest.raises(UserError) as error:
        verify_shards(folder, read_manifest(folder), checksum=True)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.ENOMEM, errno.EIO, errno.ESTALE])
def test_rights_memory_and_disks_are_no_reason_to_delete_data(number: int) -> None:
    said = str(faults.unreadable(Path("data/x.tar"), OSError(number, os.strerror(number))))
    assert os.strerror(number) in said
    assert "delete" not in said.lower()
    assert "delete" in str(faults.unreadable(Path("data/x.tar"), FileNotFoundError(errno.ENOENT, "No such file")))


def test_memory_that_is_not_there_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoMemory(io.BufferedReader):
        def read(self, size: int | None = -1, /) -> bytes:
            raise MemoryError

    monkeypatch.setattr(tables, "open_regular", lambda path: NoMemory(io.FileIO(path)))
    with pytest.raises(UserError, match="not enough memory to read") as error:
        load_index(folder, read_manifest(folder), "train")
    assert "delete" not in str(error.value)
