"""Remote data folders: fetched once, whatever asks for them, and kept within bounds."""

import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from io import BufferedRandom
from multiprocessing.process import BaseProcess as Process
from pathlib import Path
from threading import Semaphore

import pytest

from tests.support.copies import PLENTY, aged, copy_of, fetch_all, kept, opened, shards
from tests.support.data_server import Server, serving
from tests.support.patience import wait_until
from tests.support.tiny_data import write_tiny
from trainer.data.format.manifest import MANIFEST_NAME, read_manifest
from trainer.data.format.verify import verify_shards
from trainer.data.reading.shard_files import ShardFiles
from trainer.data.remote import cache
from trainer.data.remote.cache import fetch, locked
from trainer.data.remote.folder import local_folder, open_folder
from trainer.data.remote.shards import check_remote
from trainer.errors import UserError

pytestmark = pytest.mark.usefixtures("impatient")


def test_a_copy_is_a_data_folder(server: Server, original: Path, tmp_path: Path) -> None:
    folder = open_folder(server.url + "/", tmp_path, PLENTY)
    assert folder == local_folder(server.url, tmp_path)
    assert not kept(folder)
    fetch_all(folder)
    verify_shards(folder, read_manifest(folder), checksum=True)
    for path in original.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    assert not list(folder.glob("*.part"))
    asked = len(server.requests)
    assert open_folder(server.url, tmp_path, PLENTY) == folder
    fetch_all(folder)
    assert server.requests[asked:] == [(MANIFEST_NAME, 0)], "a second run asks for the manifest alone"


def test_many_at_once_fetch_each_file_once(server: Server, tmp_path: Path) -> None:
    """Threads stand in for processes: each opens its own file, so that flock keeps them apart alike."""

    def run(rank: int) -> int:
        folder = open_folder(server.url, tmp_path, PLENTY)
        return fetch_all(folder, rank=rank, world_size=4)

    with ThreadPoolExecutor(4) as pool:
        fetched_bytes = sum(pool.map(run, range(4)))
    folder = local_folder(server.url, tmp_path)
    assert fetched_bytes == sum(shard.bytes for shard in shards(folder))
    verify_shards(folder, read_manifest(folder), checksum=True)
    assert {name: server.asked_for(name) for name in kept(folder)} == {name: [0] for name in kept(folder)}
    assert not list(folder.glob("*.part"))


def _fetch_and_hang(url: str, cache_dir: Path) -> None:
    folder = local_folder(url, cache_dir)
    fetch(copy_of(folder), shards(folder)[0])


@pytest.fixture
def hung(server: Server, tmp_path: Path) -> Iterator[Process]:
    """Another process, half way through fetching the first shard, that makes no progress and holds the lock."""
    folder = open_folder(server.url, tmp_path, PLENTY)
    shard = shards(folder)[0]
    server.faults[shard.file] = [("stall", shard.bytes // 2)]
    process = multiprocessing.get_context("fork").Process(target=_fetch_and_hang, args=(server.url, tmp_path))
    process.start()
    part = folder / f"{shard.file}.part"
    try:
        wait_until(lambda: part.exists() and part.stat().st_size > 0)
        yield process
    finally:
        process.kill()
        process.join()


@pytest.mark.processes
def test_a_download_goes_on_where_a_killed_process_left_it(server: Server, tmp_path: Path, hung: Process) -> None:
    hung.kill()
    hung.join()
    folder = local_folder(server.url, tmp_path)
    shard = shards(folder)[0]
    left = (folder / f"{shard.file}.part").stat().st_size
    fetch(copy_of(folder), shard)
    assert server.asked_for(shard.file) == [0, left]
    assert (folder / shard.file).read_bytes() == (server.folder / shard.file).read_bytes()
    assert not list(folder.glob("*.part"))


@pytest.mark.processes
def test_a_process_that_holds_a_file_and_hangs_is_not_waited_for_for_ever(
    server: Server, tmp_path: Path, hung: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "LOCK_SECONDS", 0.3)
    folder = local_folder(server.url, tmp_path)
    shard = shards(folder)[0]
    with pytest.raises(UserError, match=rf"Find that process with: fuser {folder}/{shard.file}\.part"):
        fetch(copy_of(folder), shard)


def test_one_process_that_fails_speaks_for_all_that_wait(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_folder(server.url, tmp_path, PLENTY)
    shard = shards(folder)[0]
    asking, failures = Semaphore(0), []

    def counted(path: Path) -> AbstractContextManager[BufferedRandom]:
        asking.release()
        return locked(path)

    def fail(url: str, *_: object) -> None:
        if not failures:  # the others have asked by now
            assert all(asking.acquire(timeout=60) for _ in range(6))
            now, probe = time.time(), tmp_path / "probe"
            wait_until(lambda: probe.write_text("x") > 0 and probe.stat().st_mtime > now)  # its clock ticks coarsely
        failures.append(url)
        raise UserError("no byte for 30 s")

    monkeypatch.setattr(cache, "locked", counted)
    monkeypatch.setattr(cache, "fetch_file", fail)

    def said(_: int) -> str:
        with pytest.raises(UserError) as error:
            fetch(copy_of(folder), shard)
        return str(error.value)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(said, range(6)))
    assert answers == ["no byte for 30 s"] * 6
    assert failures == [f"{server.url}/{shard.file}"]
    monkeypatch.undo()
    fetch(copy_of(folder), shard)
    assert {path.name for path in folder.glob(f"{shard.file}*")} == {shard.file}


def test_the_shard_that_was_not_opened_for_longest_goes_first(server: Server, tmp_path: Path) -> None:
    folder = open_folder(server.url, tmp_path, PLENTY)
    a, b, c, d = shards(folder)[:4]
    tables = sum(path.stat().st_size for path in folder.iterdir())
    for shard in (a, b, c, a):
        aged(folder)
        os.close(opened(folder, shard))
    aged(folder)
    os.close(opened(folder, d, tables + 100 + 3 * a.bytes))
    assert kept(folder) == {a.file, c.file, d.file}


def test_an_open_shard_stays_and_a_full_cache_says_so(server: Server, tmp_path: Path) -> None:
    folder = open_folder(server.url, tmp_path, PLENTY)
    a, b, c = shards(folder)[:3]
    tables = sum(path.stat().st_size for path in folder.iterdir())
    bound = tables + 100 + 2 * a.bytes
    held = [opened(folder, shard, bound) for shard in (a, b)]
    with pytest.raises(UserError) as error:
        opened(folder, c, bound)
    assert f"The cache {tmp_path} is full: its limit is {bound / 2**30:.3g} GiB, " in str(error.value)
    assert "Raise the limit with data.cache.max_gib=N, or choose another cache with data.cache.dir=DIR." in str(
        error.value
    )
    assert kept(folder) == {a.file, b.file}
    os.close(held[0])
    held[0] = opened(folder, c, bound)
    assert kept(folder) == {b.file, c.file}
    assert os.pread(held[0], c.bytes, 0) == (server.folder / c.file).read_bytes()
    for descriptor in held:
        os.close(descriptor)


def test_all_copies_share_the_bound(server: Server, tmp_path: Path) -> None:
    first = open_folder(server.url, tmp_path, PLENTY)
    fetch_all(first)
    used = sum(path.stat().st_size for path in first.iterdir())
    with serving(server.folder) as another:
        second = open_folder(another.url, tmp_path, used)
        fetch(copy_of(second, used), shards(second)[0])
    assert kept(second)
    assert len(kept(first)) < len(shards(first))


def test_every_shard_can_be_read_through_a_cache_of_three(server: Server, tmp_path: Path) -> None:
    folder = open_folder(server.url, tmp_path, PLENTY)
    tables = sum(path.stat().st_size for path in folder.iterdir())
    bound = tables + 100 + 3 * max(shard.bytes for shard in shards(folder))
    files = ShardFiles(folder, shards(folder), copy_of(folder, bound))
    for _ in range(2):
        for number, shard in enumerate(shards(folder)):
            assert files.pread(number, 0, shard.bytes) == (server.folder / shard.file).read_bytes()
            files.close()
            assert sum(path.stat().st_size for path in folder.iterdir()) <= bound


@pytest.mark.processes
def test_a_forked_process_takes_no_lock_with_it(tmp_path: Path) -> None:
    """A data worker may be forked while another thread fetches a shard; it would hold that one for all its life."""
    path = tmp_path / "shard.part"
    with locked(path):
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        worker.start()
    try:
        with locked(path):
            assert worker.is_alive()
    finally:
        worker.kill()
        worker.join()


def test_a_shard_that_the_server_lacks_is_found_before_it_is_wanted(tmp_path: Path) -> None:
    write_tiny(tmp_path / "remote")
    with serving(tmp_path / "remote") as server:
        folder = open_folder(server.url, tmp_path / "cache", PLENTY)
        check_remote(copy_of(folder), shards(folder))
        assert not kept(folder)
        (tmp_path / "remote" / "train-000003.tar").write_bytes(b"short")
        with pytest.raises(UserError, match=r"train-000003.tar cannot be fetched: expected 20480 bytes, .* says 5"):
            check_remote(copy_of(folder), shards(folder))
        (tmp_path / "remote" / "train-000003.tar").unlink()
        with pytest.raises(UserError, match=r"train-000003.tar cannot be used: the server answered 404"):
            check_remote(copy_of(folder), shards(folder))


def test_a_damaged_copy_says_where_it_came_from(server: Server, tmp_path: Path) -> None:
    folder = open_folder(server.url, tmp_path, PLENTY)
    fetch_all(folder)
    (folder / "train-000002.tar").write_bytes(b"short")
    with pytest.raises(UserError) as error:
        verify_shards(folder, read_manifest(folder), checksum=False, is_copy=True)
    assert f"{folder / 'train-000002.tar'}: expected 20480 bytes, as in manifest.json, found 5." in str(error.value)
    assert f"The next run fetches it again from {server.url}." in str(error.value)
