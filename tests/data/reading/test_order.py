import itertools
import math
import tracemalloc
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.reading.order import (
    PADDING,
    START,
    Cursor,
    Purpose,
    check_global_batch,
    epoch_order,
    eval_batches,
    hash64,
    shuffled_groups,
    train_batches,
)
from trainer.errors import UserError

MASK = 2**64 - 1

unhurried = settings(deadline=None)  # other processes may hold the CPU


def mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def splitmix64(state: int, count: int) -> list[int]:
    """The published generator: add the golden gamma, mix."""
    return [mix((state + (i + 1) * 0x9E3779B97F4A7C15) & MASK) for i in range(count)]


def flat(batches: Iterable[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(batches))


def take(count: int, num_samples: int, **layout) -> list[list[int]]:
    """The first batches of a split whose samples lie in shards of at most 7; not a divisor of any batch here."""
    shards = [7] * (num_samples // 7) + [num_samples % 7] * (num_samples % 7 > 0)
    batches = train_batches(shards, **layout)
    return [next(batches).tolist() for _ in range(count)]


def test_hash_is_splitmix64_keyed_twice() -> None:
    key = mix(mix((0x9E3779B97F4A7C15 + 3) & MASK) + 0x9E3779B97F4A7C15 + 8 & MASK)
    assert hash64(3, 8, np.arange(50)).tolist() == [mix(key ^ word) for word in splitmix64(0, 50)]


def test_each_purpose_has_words_of_its_own() -> None:
    words = np.concatenate([hash64(3, 8, np.arange(1000), purpose) for purpose in Purpose])
    assert len(set(words.tolist())) == len(words)


@unhurried
@given(st.integers(0, 300), st.integers(0, 2**63), st.integers(0, 1000))
def test_every_epoch_is_a_permutation(num_samples: int, seed: int, epoch: int) -> None:
    order = epoch_order(num_samples, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(num_samples))


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(epoch_order(50, seed=seed, epoch=epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@pytest.mark.long
def test_every_sample_is_as_likely_at_every_place() -> None:
    num_samples, num_epochs = 8, 4000
    counts = np.zeros((num_samples, num_samples))
    for epoch in range(num_epochs):
        counts[np.arange(num_samples), epoch_order(num_samples, seed=0, epoch=epoch)] += 1
    expected = num_epochs / num_samples
    # 49 degrees of freedom: a fair shuffle exceeds 85 once in a thousand seeds.
    assert ((counts - expected) ** 2 / expected).sum() < 85


def whole_epoch(shards: list[int], start: int = 0, epoch: int = 2, **options) -> list[int]:
    groups = shuffled_groups(shards, seed=1, epoch=epoch, start=start, **options)
    return flat(group.tolist() for group in groups)


SHARDS = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@pytest.mark.long
@unhurried
@given(SHARDS, st.integers(1, 40), st.data())
def test_groups_make_up_an_epoch_and_may_begin_anywhere(
    shards: list[int], group_samples: int, data: st.DataObject
) -> None:
    order = whole_epoch(shards, group_samples=group_samples)
    assert sorted(order) == list(range(sum(shards)))
    start = data.draw(st.integers(0, len(order)))
    assert whole_epoch(shards, start, group_samples=group_samples) == order[start:]


@pytest.mark.long
@unhurried
@given(SHARDS)
def test_a_split_of_one_group_is_permuted_as_a_whole(shards: list[int]) -> None:
    expected = epoch_order(sum(shards), seed=1, epoch=2).tolist()
    assert whole_epoch(shards, group_samples=sum(shards)) == expected == whole_epoch(shards)


@pytest.mark.long
@unhurried
@given(SHARDS, st.integers(1, 40))
def test_no_group_is_larger_than_it_may_be_and_one_shard(shards: list[int], group_samples: int) -> None:
    sizes = [len(group) for group in shuffled_groups(shards, seed=1, epoch=0, group_samples=group_samples)]
    assert all(size < group_samples + max(shards) for size in sizes)
    assert len(sizes) <= -(-sum(shards) // group_samples)


def test_groups_mix_shards_well() -> None:
    """100 shards in groups of 20: as good as a full permutation inside a batch, and unlike the order on the disk."""
    num_shards, size, batch = 100, 100, 256
    epochs = [np.array(whole_epoch([size] * num_shards, epoch=epoch, group_samples=20 * size)) for epoch in range(3)]
    for order in epochs:
        mixed = [len(np.unique(ids // size)) for ids in order[: 39 * batch].reshape(-1, batch)]
        # Drawing 256 of 20 shards misses one of them in one batch of 25,000.
        assert min(mixed) >= 20
        # 10,000 samples: the correlation of two independent orders has a standard deviation of 0.01; between groups
        # the 100 shards make it 0.1.
        assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.4
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.4
    companions = [set((order[:batch] // size).tolist()) for order in epochs]
    assert companions[0] != companions[1] != companions[2]


def test_groups_take_memory_for_one_group_only() -> None:
    tracemalloc.start()
    groups = shuffled_groups([1000] * 4000, seed=0, epoch=0, group_samples=10_000, start=3_990_000)
    assert len(next(groups)) == 10_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6  # the whole order takes 32 MB


@pytest.mark.long
@unhurried
@given(st.data())
def test_all_layouts_see_the_same_global_batches(data: st.DataObject) -> None:
    world_size = data.draw(st.integers(1, 5))
    global_batch = world_size * data.draw(st.integers(1, 5))
    num_samples = data.draw(st.integers(global_batch, 60))
    group_samples = data.draw(st.sampled_from([10, 1000]))
    shared = {
        "num_samples": num_samples,
        "global_batch": global_batch,
        "seed": 7,
        "cursor": START,
        "group_samples": group_samples,
    }
    count = 2 * (num_samples // global_batch) + 1
    alone = take(count, **shared, rank=0, world_size=1)
    ranks = [take(count, **shared, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [flat(slices) for slices in zip(*ranks, strict=True)] == alone


@pytest.mark.long
@unhurried
@given(st.integers(1, 12), st.integers(0, 30), st.sampled_from([10, 1000]))
def test_resume_at_every_step_goes_on_as_if_uninterrupted(global_batch: int, extra: int, group_samples: int) -> None:
    num_samples = global_batch + extra
    layout = {"seed": 1, "rank": 0, "world_size": 1, "group_samples": group_samples}
    shared = {"num_samples": num_samples, "global_batch": global_batch} | layout
    whole = take(8, **shared, cursor=START)
    cursor = START
    for step in range(8):
        assert take(8 - step, **shared, cursor=cursor) == whole[step:]
        cursor = cursor.advance(num_samples, global_batch)


def test_an_epoch_repeats_nothing_and_the_tail_changes() -> None:
    batches = take(9, num_samples=10, global_batch=3, seed=0, rank=0, world_size=1, cursor=START)
    epochs = [flat(batches[first : first + 3]) for first in (0, 3, 6)]
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert len({(set(range(10)) - set(epoch)).pop() for epoch in epochs}) > 1


def test_another_global_batch_goes_on_in_the_same_epoch() -> None:
    shared = {"num_samples": 20, "seed": 0, "rank": 0, "world_size": 1}
    before = take(2, **shared, global_batch=4, cursor=START)
    cursor = START.advance(20, 4).advance(20, 4)
    assert cursor == Cursor(0, 8)
    after = take(2, **shared, global_batch=6, cursor=cursor)
    assert sorted(flat(before + after)) == list(range(20))


@unhurried
@given(st.integers(1, 70), st.integers(1, 9), st.integers(1, 6))
def test_evaluation_sees_every_sample_once_in_equal_steps(num_samples: int, batch_size: int, world_size: int) -> None:
    ranks = [
        eval_batches(num_samples, batch_size=batch_size, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    assert {len(batches) for batches in ranks} == {math.ceil(num_samples / (batch_size * world_size))}
    seen = [i for batches in ranks for batch in batches for i in batch.tolist() if i != PADDING]
    assert sorted(seen) == list(range(num_samples))
    assert all(len(batch) == batch_size for batches in ranks for batch in batches)


@pytest.mark.parametrize(
    ("num_samples", "global_batch", "world_size", "message"),
    [
        (100, 10, 4, "Use a global batch of 8 or 12"),
        (100, 3, 4, "Use a global batch of 4, or a number of processes that divides 3"),
        (9, 10, 2, "Use a global batch of at most 8"),
        (1, 4, 2, "Make more samples"),
        (100, 0, 2, "must be at least 1, found 0"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(
    num_samples: int, global_batch: int, world_size: int, message: str
) -> None:
    with pytest.raises(UserError) as error:
        check_global_batch(num_samples, global_batch=global_batch, world_size=world_size)
    assert message in str(error.value)


def test_a_batch_that_fits_is_accepted() -> None:
    check_global_batch(10, global_batch=10, world_size=5)
