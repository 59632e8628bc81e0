"""Training through a cache that cannot hold all of the data: the next group of shards is fetched ahead."""

import math
import os
from contextlib import closing
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.copies import PLENTY, aged, copy_of, kept, shards
from tests.support.data_server import Server
from tests.support.loaders import train_loader
from tests.support.patience import wait_until
from trainer.data.format.manifest import ShardSpec, read_manifest
from trainer.data.reading.ahead import ShardsAhead, groups_from
from trainer.data.reading.order import Cursor, shuffled_groups
from trainer.data.remote.cache import fetch, open_shard
from trainer.data.remote.copies import held_files
from trainer.data.remote.folder import check_room, fits, open_folder
from trainer.data.remote.shards import fetch_shards
from trainer.errors import UserError

pytestmark = pytest.mark.usefixtures("impatient")


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
    assert not fits([read_manifest(folder)], bound)
    options = {"tasks": ["even", "digit"], "global_batch": 4, "seed": 1, "group_samples": 6}
    here = train_loader(folder, copy=copy_of(folder, bound), **options)
    there = train_loader(server.folder, **options)
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
    with closing(train_loader(server.folder, **options)) as local:
        cursors, expected = [], []
        for _ in range(7):
            cursors.append(local.streams[0].cursor)
            expected.append(next(local))
    for step in range(7):
        resumed = {"cursor": cursors[step], "copy": copy} | options
        ranks = [train_loader(folder, rank=rank, world_size=2, **resumed) for rank in range(2)]
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
    wait_until(lambda: kept(folder) == wanted)
    ahead.reach(groups[1][0])
    wanted |= {shard.file for shard in groups[2][1]}
    # A file is in its place before its bytes are counted.
    fetched_bytes = sum(shard.bytes for _, group in groups[1:3] for shard in group)
    wait_until(lambda: ahead.fetched_bytes == fetched_bytes)
    assert kept(folder) == wanted
    ahead.close()


@settings(max_examples=50)
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
    check_room([manifest], 5, enough)
    with pytest.raises(UserError) as error:
        check_room([manifest], 5, enough - 1)
    for phrase in (
        f"The cache is too small: data.cache.max_gib={(enough - 1) / 2**30:.3g}.",
        f"tables take {(tables + test) / 2**30:.3g};",
        f"take {2 * 10 / 23 * train / 2**30:.3g} more.",
        f"Type data.cache.max_gib={enough / 2**30 * 1.05:.3g},",
    ):
        assert phrase in str(error.value)


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
            wait_until(lambda wanted={shard.file for shard in following}: kept(folder) >= wanted)  # type: ignore[misc]
            assert kept(folder) >= {shard.file for shard in test}
