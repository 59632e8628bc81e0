"""Remote data folders: fetched once, whatever asks for them, and kept within bounds."""

import math
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from io import BufferedRandom
from itertools import islice, pairwise
from multiprocessing.process import BaseProcess as Process
from pathlib import Path
from threading import Semaphore

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.data_server import Server, serving
from tests.support.tiny_data import write_tiny
from trainer.data.format.manifest import MANIFEST_NAME, ShardSpec, read_manifest
from trainer.data.format.verify import verify_shards
from trainer.data.reading.ahead import ShardsAhead, groups_from
from trainer.data.reading.loader import TrainLoader
from trainer.data.reading.order import Cursor, shuffled_groups
from trainer.data.reading.shard_files import ShardFiles
from trainer.data.remote import cache, transfer
from trainer.data.remote.cache import fetch, locked, open_shard
from trainer.data.remote.copies import Copy, copy_at, held_files
from trainer.data.remote.folder import check_room, fits, local_folder, open_folder
from trainer.data.remote.shards import check_remote, fetch_shards
from trainer.errors import UserError

PLENTY = 1 << 30


@pytest.fixture(autouse=True)
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


def shards(folder: Path) -> list[ShardSpec]:
    return [shard for split in read_manifest(folder).splits.values() for shard in split.shards]


def copy_of(folder: Path, max_bytes: int = PLENTY) -> Copy:
    copy = copy_at(folder, folder.parent, max_bytes)
    assert copy is not None
    return copy


def fetch_all(folder: Path, **options: int) -> int:
    return sum(fetch_shards(copy_of(folder), shards(folder), **options))


def opened(folder: Path, shard: ShardSpec, max_bytes: int = PLENTY) -> int:
    return open_shard(folder, shard, copy_of(folder, max_bytes))


def aged(folder: Path, seconds: float = 100.0) -> None:
    """Let every shard be unopened for that much longer."""
    for path in folder.glob("*.tar"):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - seconds))


def kept(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.tar")}


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


def test_places_in_the_cache_do_not_collide(tmp_path: Path) -> None:
    paths = ["https://a.org/train/shards", "https://a.org/test/shards", "http://a.org/train/shards", "s3://a/shards"]
    found = {local_folder(path, tmp_path) for path in paths}
    assert len(found) == 4
    assert all(path.parent == tmp_path and path.name.startswith("shards-") for path in found)
    assert local_folder("data/digits", tmp_path) == Path("data/digits")
    assert local_folder("s3://a/b", Path("~/x")).parent == Path.home() / "x"


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
        wait_for(lambda: part.exists() and part.stat().st_size > 0)
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
    with pytest.raises(UserError) as error:
        fetch(copy_of(folder), shard)
    part = folder / f"{shard.file}.part"
    assert str(error.value) == (
        f"{part} is held by another process that has added nothing to it for 0.3 s.\n"
        f"Find that process with: fuser {part}"
    )


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
            wait_for(lambda: probe.write_text("x") > 0 and probe.stat().st_mtime > now)  # its clock ticks coarsely
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
    assert f"The cache {tmp_path} is full: it may hold {bound / 2**30:.3g} GiB, " in str(error.value)
    assert "Give it more with data.cache.max_gib=N, or another place with data.cache.dir=DIR." in str(error.value)
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


def test_other_data_at_the_same_address_replaces_the_copy(tmp_path: Path) -> None:
    write_tiny(tmp_path / "remote")
    with serving(tmp_path / "remote") as server:
        folder = open_folder(server.url, tmp_path / "cache", PLENTY)
        fetch_all(folder)
        shutil.rmtree(tmp_path / "remote")
        write_tiny(tmp_path / "remote", train=17)
        assert open_folder(server.url, tmp_path / "cache", PLENTY) == folder
        assert not kept(folder)
        fetch_all(folder)
        verify_shards(folder, read_manifest(folder), checksum=True)


def test_without_its_server_a_copy_can_be_named_itself(server: Server, tmp_path: Path) -> None:
    folder = open_folder(server.url, tmp_path, PLENTY)
    server.faults[MANIFEST_NAME] = [503, 503]
    with pytest.raises(UserError) as error:
        open_folder(server.url, tmp_path, PLENTY)
    assert "answered 503" in str(error.value)
    assert str(error.value).endswith(f"To train on the copy from earlier: data.path={folder}")
    assert open_folder(str(folder), tmp_path, PLENTY) == folder


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"train-000001.tar"', '"../../x.tar"', "file: String should match pattern"),
        ('"train.index.npy"', '"/etc/passwd"', "file: String should match pattern"),
        ("{", "<html>", "is not JSON"),
    ],
)
def test_a_hostile_manifest_names_no_file_outside(tmp_path: Path, old: str, new: str, said: str) -> None:
    write_tiny(tmp_path / "remote")
    path = tmp_path / "remote" / MANIFEST_NAME
    path.write_text(path.read_text().replace(old, new, 1))
    with serving(tmp_path / "remote") as server, pytest.raises(UserError) as error:
        open_folder(server.url, tmp_path / "cache", PLENTY)
    assert said in str(error.value)
    assert f"It was fetched from {server.url}." in str(error.value)
    assert [name for name, _ in server.requests] == [MANIFEST_NAME]


def test_a_cache_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"The cache .* cannot be written: .*\nGive it another place with data.cache.dir"
    ):
        open_folder(server.url, tmp_path / "file", PLENTY)


# Data that the cache cannot hold


def largest(folder: Path, count: int) -> int:
    """Bytes of the tables and so many shards."""
    manifest = read_manifest(folder)
    tables = sum(file.bytes for split in manifest.splits.values() for file in (split.index, split.labels))
    return tables + 2000 + count * max(shard.bytes for shard in shards(folder))


@pytest.mark.processes
def test_training_through_a_cache_of_two_groups_is_the_same(server: Server, tmp_path: Path) -> None:
    """Groups of two shards, of five; three epochs; the next group comes while one is trained on."""
    bound = largest(server.folder, 4)
    folder = open_folder(server.url, tmp_path, bound)
    assert not fits(read_manifest(folder), bound)
    options = {"tasks": ["even", "digit"], "global_batch": 4, "seed": 1, "group_samples": 6}
    here = TrainLoader(folder, copy=copy_of(folder, bound), **options)
    there = TrainLoader(server.folder, **options)
    with closing(here), closing(there):
        for _ in range(15):
            ours, theirs = next(here), next(there)
            assert ours.sample_ids_B.tolist() == theirs.sample_ids_B.tolist()
            assert torch.equal(ours.inputs, theirs.inputs)
        assert not there.cache_use
        # Nothing was there: what did not come ahead of time was fetched when it was wanted.
        use, sizes = here.cache_use, {shard.bytes for shard in shards(folder)}
        assert use["misses"] >= 2
        assert use["hits"] > 0
        assert use["hits"] + use["misses"] >= 15
        assert 5 * min(sizes) <= use["fetched_bytes"]
    # Three may be on their way at once, and each has found room for itself alone.
    assert sum(status.st_size for _, status, _ in held_files(tmp_path)) <= largest(server.folder, 6)


@pytest.mark.processes
def test_a_source_that_cannot_seek_is_exact_and_elastic(server: Server, tmp_path: Path) -> None:
    """A run resumed at any step goes on on any layout. A loader that is closed early leaves shards half fetched, which
    the next one asks the server to go on with, in vain."""
    server.honours_range = server.says_length = False
    bound = largest(server.folder, 4)
    folder = open_folder(server.url, tmp_path, bound)
    copy = copy_of(folder, bound)
    first = shards(folder)[0]
    (folder / f"{first.file}.part").write_bytes((server.folder / first.file).read_bytes()[:4096])
    fetch(copy, first)
    assert server.asked_for(first.file) == [4096]
    assert (folder / first.file).read_bytes() == (server.folder / first.file).read_bytes()
    options = {"tasks": ["even"], "global_batch": 4, "seed": 1, "group_samples": 6}
    with closing(TrainLoader(server.folder, **options)) as local:
        cursors, expected = [], []
        for _ in range(7):
            cursors.append(local.cursor)
            expected.append(next(local))
    for step in range(7):
        resumed = {"cursor": cursors[step], "copy": copy} | options
        ranks = [TrainLoader(folder, rank=rank, world_size=2, **resumed) for rank in range(2)]
        for later in range(step, min(step + 2, 7)):
            found = [next(rank) for rank in ranks]
            assert torch.equal(torch.cat([batch.sample_ids_B for batch in found]), expected[later].sample_ids_B)
            assert torch.equal(torch.cat([batch.inputs for batch in found]), expected[later].inputs)
        for rank in ranks:
            rank.close()


def test_the_next_group_comes_ahead_and_the_one_after_it_does_not(server: Server, tmp_path: Path) -> None:
    folder = open_folder(server.url, tmp_path, PLENTY)
    train = read_manifest(folder).split("train").shards
    cursor = Cursor(2, 12)
    groups = list(islice(groups_from(cursor, train, seed=0, group_samples=6), 4))
    ahead = ShardsAhead(copy_of(folder), iter(groups))
    ahead.reach(cursor)
    wanted = {shard.file for shard in groups[1][1]}
    wait_for(lambda: kept(folder) == wanted)
    ahead.reach(groups[1][0])
    wanted |= {shard.file for shard in groups[2][1]}
    wait_for(lambda: kept(folder) == wanted)
    assert ahead.fetched_bytes == sum(shard.bytes for _, group in groups[1:3] for shard in group)
    ahead.close()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 30), st.integers(0, 2**31), st.data())
def test_the_groups_of_shards_are_those_of_the_samples(
    sizes: list[int], group_samples: int, seed: int, data: st.DataObject
) -> None:
    """Whatever the cursor, the shards of the group that it lies in hold the next samples of the canonical order."""
    samples = data.draw(st.integers(0, sum(sizes) - 1))
    made = [ShardSpec(file=f"{n}.tar", bytes=9 * 512, sha256="0" * 64, samples=size) for n, size in enumerate(sizes)]
    (begin, first), (after, _) = islice(
        groups_from(Cursor(3, samples), made, seed=seed, group_samples=group_samples), 2
    )
    ids = next(shuffled_groups(sizes, seed=seed, epoch=3, group_samples=group_samples, start=samples))
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    assert {f"{shard}.tar" for shard in shard_of[ids]} <= {shard.file for shard in first}
    assert begin.samples <= samples
    assert after == (Cursor(3, samples + len(ids)) if samples + len(ids) < sum(sizes) else Cursor(4, 0))


def test_a_cache_too_small_for_two_groups_and_the_test_split_is_refused(original: Path) -> None:
    manifest = read_manifest(original)
    train, test = (sum(shard.bytes for shard in manifest.split(name).shards) for name in ("train", "test"))
    tables = sum(file.bytes for split in manifest.splits.values() for file in (split.index, split.labels))
    # Two groups of shards that reach 5 samples hold at most 10 each, of 23.
    enough = math.ceil(tables + test + 2 * 10 / 23 * train)
    check_room(manifest, 5, enough)
    with pytest.raises(UserError) as error:
        check_room(manifest, 5, enough - 1)
    assert str(error.value) == (
        f"The cache is too small: it may hold data.cache.max_gib={(enough - 1) / 2**30:.3g}. The test split and the "
        f"tables take {(tables + test) / 2**30:.3g}; the shards of two groups of data.shuffle_samples=5 samples, one "
        f"in use and the next, take {2 * 10 / 23 * train / 2**30:.3g} more.\n"
        f"Type data.cache.max_gib={enough / 2**30 * 1.05:.3g}, or fewer data.shuffle_samples (another order)."
    )


def test_the_test_split_stays_while_groups_come_and_go(server: Server, tmp_path: Path) -> None:
    """Evaluations are rare: its shards are the ones that nobody has opened for longest."""
    manifest = read_manifest(server.folder)
    tables = sum(file.bytes for split in manifest.splits.values() for file in (split.index, split.labels))
    test = manifest.split("test").shards
    bound = tables + 3000 + sum(shard.bytes for shard in test) + 4 * max(shard.bytes for shard in shards(server.folder))
    folder = open_folder(server.url, tmp_path, bound)
    groups = list(islice(groups_from(Cursor(0, 0), manifest.split("train").shards, seed=1, group_samples=6), 8))
    copy = copy_of(folder, bound)
    assert len(list(fetch_shards(copy, [*test, *groups[0][1]]))) == len(test) + len(groups[0][1])
    with closing(ShardsAhead(copy, iter(groups), test)) as ahead:
        for (cursor, group), (_, following) in pairwise(groups):
            aged(folder)
            for shard in group:
                os.close(open_shard(folder, shard, copy))
            ahead.reach(cursor)
            wait_for(lambda wanted={shard.file for shard in following}: kept(folder) >= wanted)  # type: ignore[misc]
            assert kept(folder) >= {shard.file for shard in test}


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
    assert str(error.value) == (
        f"{folder / 'train-000002.tar'}: expected 20480 bytes, found 5.\n"
        f"It is a copy. Delete it with: rm -r {folder}\nThe next run fetches it again from {server.url}."
    )
