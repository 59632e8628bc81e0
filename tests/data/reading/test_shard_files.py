import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pydantic import ValidationError

from trainer.data.format.faults import remedy
from trainer.data.format.manifest import ShardSpec
from trainer.data.reading import shard_files
from trainer.data.reading.shard_files import ShardFiles
from trainer.errors import UserError


def shards(folder: Path, count: int) -> ShardFiles:
    specs = []
    for number in range(count):
        (folder / f"{number}.tar").write_bytes(number.to_bytes(4, "big") * 4)
        specs.append(ShardSpec(file=f"{number}.tar", bytes=1024, sha256="0" * 64, samples=1))
    return ShardFiles(folder, specs)


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (psutil.Process().num_fds() + 40, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("few_descriptors")
def test_any_number_of_shards_works_with_few_descriptors(tmp_path: Path) -> None:
    before = psutil.Process().num_fds()
    files = shards(tmp_path, 300)
    for _ in range(2):
        for number in range(300):
            assert files.pread(number, 4, 8) == number.to_bytes(4, "big") * 2
    files.close()
    assert psutil.Process().num_fds() <= before, "what earlier tests left may have been collected meanwhile"


def test_the_last_used_shards_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (6, 6))
    files = shards(tmp_path, 4)
    opened = []
    real = shard_files.open_shard
    monkeypatch.setattr(shard_files, "open_shard", lambda *wanted: opened.append(wanted[1].file) or real(*wanted))
    for number in (0, 1, 2, 0, 3, 0, 1):
        files.pread(number, 0, 4)
    files.close()
    assert opened == ["0.tar", "1.tar", "2.tar", "3.tar", "1.tar"]


def test_a_disk_that_comes_back_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shard_files, "RETRY_AFTER_SECONDS", (0.0, 0.0))
    files = shards(tmp_path, 1)
    real, faults = os.pread, [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale file handle")]

    def pread(*arguments: int) -> bytes:
        if faults:
            raise faults.pop(0)
        return real(*arguments)

    monkeypatch.setattr(os, "pread", pread)
    assert files.pread(0, 0, 4) == bytes(4)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / '0.tar'} cannot be read: [Errno {number}] {text}. Trying again in 0 s"
        for number, text in ((errno.EIO, "Input/output error"), (errno.ESTALE, "Stale file handle"))
    ]
    files.close()


def test_one_that_does_not_come_back_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(shard_files.time, "sleep", waits.append)
    files = shards(tmp_path, 1)
    (tmp_path / "0.tar").unlink()
    with pytest.raises(UserError) as error:
        files.pread(0, 0, 4)
    assert str(error.value).startswith(f"{tmp_path / '0.tar'} cannot be read: No such file or directory")
    assert f"\n{remedy(tmp_path)}" in str(error.value)
    assert waits == list(shard_files.RETRY_AFTER_SECONDS)


def test_a_shard_that_ends_too_soon_is_not_tried_again(tmp_path: Path) -> None:
    files = shards(tmp_path, 1)
    with pytest.raises(UserError, match=r"0.tar: expected 8 bytes at byte 12, found 4\.\nCopy "):
        files.pread(0, 12, 8)
    files.close()


def test_a_shard_without_samples_is_none() -> None:
    with pytest.raises(ValidationError, match=r"samples\n.*greater than 0"):
        ShardSpec(file="0.tar", bytes=1024, sha256="0" * 64, samples=0)
