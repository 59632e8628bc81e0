"""Asked, launched and joined must be one number."""

import os
import resource

import pytest

from tests.support.ranks import run_ranks
from trainer.config.sections.parallel import ParallelConfig
from trainer.errors import UserError
from trainer.runtime.distributed import check_world_size, joined


@pytest.mark.parametrize("count", [1, 2, 64])
def test_three_equal_numbers_pass(count: int) -> None:
    check_world_size(asked=count, launched=count, joined=count)


@pytest.mark.parametrize(
    ("asked", "launched", "joined"),
    [
        (2, 1, 1),  # accelerate launch --cpu: one process, no word
        (2, 2, 1),  # --multi_gpu without a GPU: two processes that never meet
        (1, 2, 2),  # launched by hand, forgotten in the configuration
        (4, 2, 2),  # one of two nodes did not come
        (2, 2, 3),  # strangers on the same port
    ],
)
def test_any_difference_names_all_three_and_what_to_type(asked: int, launched: int, joined: int) -> None:
    with pytest.raises(UserError) as caught:
        check_world_size(asked, launched, joined)
    said = str(caught.value)
    assert f"{asked} processes were asked for (parallel.processes)" in said
    assert f"{launched} launched (WORLD_SIZE)" in said
    assert f"{joined} joined" in said
    assert f"--processes {asked}" in said
    assert f"parallel.processes={launched}" in said


def connected(rank: int) -> int:
    """The number of processes that have found one another, allowed two more open files than there are."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 2, hard))
    with joined(ParallelConfig(processes=2)) as runtime:
        return sum(runtime.gather(1))


@pytest.mark.processes
def test_a_small_limit_of_open_files_does_not_keep_processes_apart() -> None:
    assert run_ranks(2, connected) == [2, 2]
