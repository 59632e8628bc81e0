import itertools
import math
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.order import (
    PADDING,
    START,
    Cursor,
    check_global_batch,
    epoch_order,
    eval_batches,
    hash64,
    train_batches,
)
from trainer.errors import UserError

MASK = 2**64 - 1


def mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def splitmix64(state: int, count: int) -> list[int]:
    """The published generator: add the golden gamma, mix."""
    return [mix((state + (i + 1) * 0x9E3779B97F4A7C15) & MASK) for i in range(count)]


def flat(batches: Iterable[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(batches))


def take(count: int, **layout) -> list[list[int]]:
    batches = train_batches(**layout)
    return [next(batches).tolist() for _ in range(count)]


def test_hash_is_splitmix64_keyed_twice() -> None:
    key = mix(mix((0x9E3779B97F4A7C15 + 3) & MASK) + 0x9E3779B97F4A7C15 + 8 & MASK)
    assert hash64(3, 8, np.arange(50)).tolist() == [mix(key ^ word) for word in splitmix64(0, 50)]


@given(st.integers(0, 300), st.integers(0, 2**63), st.integers(0, 1000))
def test_every_epoch_is_a_permutation(num_samples: int, seed: int, epoch: int) -> None:
    order = epoch_order(num_samples, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(num_samples))


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(epoch_order(50, seed=seed, epoch=epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_every_sample_is_as_likely_at_every_place() -> None:
    num_samples, num_epochs = 8, 4000
    counts = np.zeros((num_samples, num_samples))
    for epoch in range(num_epochs):
        counts[np.arange(num_samples), epoch_order(num_samples, seed=0, epoch=epoch)] += 1
    expected = num_epochs / num_samples
    # 49 degrees of freedom: a fair shuffle exceeds 85 once in a thousand seeds.
    assert ((counts - expected) ** 2 / expected).sum() < 85


@given(st.data())
def test_all_layouts_see_the_same_global_batches(data: st.DataObject) -> None:
    world_size = data.draw(st.integers(1, 5))
    global_batch = world_size * data.draw(st.integers(1, 5))
    num_samples = data.draw(st.integers(global_batch, 60))
    shared = {"num_samples": num_samples, "global_batch": global_batch, "seed": 7, "cursor": START}
    count = 2 * (num_samples // global_batch) + 1
    alone = take(count, **shared, rank=0, world_size=1)
    ranks = [take(count, **shared, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [flat(slices) for slices in zip(*ranks, strict=True)] == alone


@given(st.integers(1, 12), st.integers(0, 30))
def test_resume_at_every_step_goes_on_as_if_uninterrupted(global_batch: int, extra: int) -> None:
    num_samples = global_batch + extra
    shared = {"num_samples": num_samples, "global_batch": global_batch, "seed": 1, "rank": 0, "world_size": 1}
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
        (100, 10, 4, "cannot be cut into 4 equal slices, one per process.\nUse a global batch of 8 or 12"),
        (100, 3, 4, "Use a global batch of 4, or a number of processes that divides 3"),
        (9, 10, 2, "holds 9 samples, less than one global batch of 10.\nUse a global batch of at most 8"),
        (1, 4, 2, "holds 1 samples, less than one global batch of 4.\nMake more samples"),
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
