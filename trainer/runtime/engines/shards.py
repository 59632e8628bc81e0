"""Gradients as one flat vector, of which each rank keeps its shard.

Shapes: P entries, S of them on this rank.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn


def flat(gradients: Iterable[Tensor]) -> Tensor:
    """Return some gradients one after another: (P,)."""
    return torch.cat([gradient.flatten() for gradient in gradients])


def part_of(gradients_P: Tensor, number: int, num_parts: int) -> Tensor:
    """Return one of `num_parts` equal parts, padded with zeros: (S,)."""
    return _padded(gradients_P, num_parts).chunk(num_parts)[number]


def scatter_mean(gradients_P: Tensor) -> Tensor:
    """Return this rank's part of the mean over the ranks, padded with zeros: (S,). Collective."""
    if not dist.is_initialized():
        return gradients_P
    world_size = dist.get_world_size()
    padded_P = _padded(gradients_P, world_size)
    shard_S = padded_P.new_empty(len(padded_P) // world_size)
    with _old_names():
        dist.reduce_scatter_tensor(shard_S, padded_P)
    return shard_S.div_(world_size)


def mean(gradients_P: Tensor) -> Tensor:
    """Return the mean over the ranks. Overwrites its argument. Collective."""
    if dist.is_initialized():
        dist.all_reduce(gradients_P)
        gradients_P /= dist.get_world_size()
    return gradients_P


def gather(shard_S: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Return the parts of all ranks of a group, by default of all ranks, one after another. Collective."""
    if not dist.is_initialized():
        return shard_S
    whole_P = shard_S.new_empty(len(shard_S) * dist.get_world_size(group))
    with _old_names():
        dist.all_gather_into_tensor(whole_P, shard_S.contiguous(), group)
    return whole_P


@contextmanager
def _old_names() -> Iterator[None]:
    """Silence what torch 2.13 says of the names of two collectives, whose new ones torch 2.9 does not know."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
        yield


def _padded(gradients_P: Tensor, num_parts: int) -> Tensor:
    return nn.functional.pad(gradients_P, [0, -len(gradients_P) % num_parts])
