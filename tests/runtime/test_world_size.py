"""Asked, launched and joined must be one number."""

import pytest

from trainer.errors import UserError
from trainer.runtime.setup import check_world_size


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
