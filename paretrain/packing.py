"""A symmetric matrix on the wire: its blocks of rows, each from the diagonal on.

Little more than half of a large matrix travels, in a few block copies. Row by row, exactly half would travel, but
packing and unpacking would take longer than sending.

Shapes: T tasks.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from paretrain.gram import BLOCK_TASKS


def packed_size(num_tasks: int) -> int:
    """Return how many numbers a packed T x T matrix has. A matrix of at most `BLOCK_TASKS` rows travels whole."""
    return sum((rows.stop - rows.start) * (num_tasks - rows.start) for rows in _blocks(num_tasks))


def pack(matrix_TT: Tensor, *more: Tensor) -> Tensor:
    """Pack the symmetric matrix, followed by `more`, into one vector."""
    blocks = [matrix_TT[rows, rows.start :].flatten() for rows in _blocks(len(matrix_TT))]
    return torch.cat([*blocks, *more])


def unpack(message: Tensor, out_TT: Tensor) -> None:
    """Write the matrix that `pack` was given, or the sum of several, into `out_TT`."""
    num_tasks, end = len(out_TT), 0
    for rows in _blocks(num_tasks):
        num_rows, width = rows.stop - rows.start, num_tasks - rows.start
        start, end = end, end + num_rows * width
        block = message[start:end].view(num_rows, width)
        out_TT[rows, rows.start :] = block
        out_TT[rows.stop :, rows] = block[:, num_rows:].T


def _blocks(num_tasks: int) -> Iterator[slice]:
    for start in range(0, num_tasks, BLOCK_TASKS):
        yield slice(start, min(start + BLOCK_TASKS, num_tasks))
