"""Symmetric matrices on the wire."""

import pytest
import torch

from paretrain.gram import BLOCK_TASKS
from paretrain.packing import pack, packed_size, unpack


@pytest.mark.parametrize("num_tasks", [1, 2, BLOCK_TASKS - 1, BLOCK_TASKS, BLOCK_TASKS + 1, 3 * BLOCK_TASKS + 5])
def test_a_sum_of_packed_matrices_unpacks_to_their_sum(num_tasks: int) -> None:
    generator = torch.Generator().manual_seed(num_tasks)
    halves = [torch.randn(num_tasks, num_tasks, generator=generator, dtype=torch.float64) for _ in range(2)]
    matrices = [half + half.T for half in halves]
    behind = torch.arange(3.0, dtype=torch.float64)
    left, right = (pack(matrix, behind) for matrix in matrices)
    assert len(left) == packed_size(num_tasks) + 3
    unpacked = torch.full_like(matrices[0], torch.nan)
    unpack(left + right, unpacked)
    assert torch.equal(unpacked, matrices[0] + matrices[1])


def test_little_more_than_half_of_many_tasks_travels() -> None:
    assert packed_size(40) == 40**2
    assert packed_size(1000) < 0.57 * 1000**2
    assert packed_size(10_000) < 0.51 * 10_000**2


def test_nan_of_one_task_stays_in_its_row_and_column() -> None:
    matrix = torch.ones(200, 200)
    matrix[150] = matrix[:, 150] = torch.nan
    unpacked = torch.empty(200, 200)
    unpack(pack(matrix), unpacked)
    assert torch.equal(unpacked.isnan(), matrix.isnan())
