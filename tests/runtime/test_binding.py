"""Each process of a host gets cores of its own."""

import os

import pytest

from trainer.errors import UserError
from trainer.runtime.binding import bind_cores, share_of


@pytest.mark.parametrize(("num_cores", "processes"), [(8, 8), (9, 2), (64, 8), (7, 3), (1, 1)])
def test_all_cores_are_shared_out_in_order_and_equally(num_cores: int, processes: int) -> None:
    cores = [2 * core for core in range(num_cores)]
    shares = [share_of(cores, rank, processes) for rank in range(processes)]
    assert [core for share in shares for core in share] == cores
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_processes_than_cores_are_refused() -> None:
    with pytest.raises(UserError, match=r"2 processes share 1 cores of a host(.|\n)*parallel.bind_cores=false"):
        share_of([0], 0, 2)


def test_a_process_is_bound_as_the_launcher_numbers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.sched_getaffinity(0)
    monkeypatch.setenv("LOCAL_RANK", str(len(before) - 1))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(len(before)))
    try:
        bind_cores()
        assert os.sched_getaffinity(0) == {max(before)}
    finally:
        os.sched_setaffinity(0, before)
