"""Forwards and backwards that leave nothing behind: running statistics and random generators are as before."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from trainer.training.learner import Learner


def copy_buffers(learner: Learner) -> list[Tensor]:
    """Return copies of the network's buffers, such as running statistics, for `restore_buffers`."""
    return [buffer.clone() for buffer in learner.network.buffers()]


def restore_buffers(learner: Learner, copies: Sequence[Tensor]) -> None:
    """Overwrite the network's buffers with their copies."""
    for buffer, copy in zip(learner.network.buffers(), copies, strict=True):
        buffer.copy_(copy)


@contextmanager
def leaving_no_trace(learner: Learner) -> Iterator[None]:
    """Restore the running statistics and the random generators after the forwards inside the block."""
    buffers, device = copy_buffers(learner), learner.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # Else it forks those of all GPUs.
        yield
    restore_buffers(learner, buffers)
