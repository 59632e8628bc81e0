"""Gradients as one flat vector, of which each rank keeps its shard.

Shapes: P entries, padded to a multiple of the number of ranks W; S = P / W of them on this rank.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Room:
    """Memory for this rank's shards of several gradients.

    It is kept from step to step: on a CPU, new memory of the size of a model costs as much as filling it.
    """

    def __init__(self) -> None:
        self._shards_GS = torch.zeros(0, 0)

    def shards(self, num_backwards: int, size: int, like: Tensor) -> Tensor:
        """Return (G, S) of any values, with the type and on the device of `like`."""
        if self._shards_GS.shape != (num_backwards, size):
            self._shards_GS = torch.zeros(0, 0)  # Free it before another one is made.
            self._shards_GS = like.new_empty(num_backwards, size)
        return self._shards_GS


class FlatGradients:
    """The gradients of some parameters, one after another, as their shards are made and put together again.

    Its memory is kept from step to step, too.

    Args:
        parameters: whole, on every rank.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._sizes = [parameter.numel() for parameter in parameters]
        num_entries = sum(self._sizes)
        self._shard_size = -(-num_entries // _world_size())
        self._room = Room()
        like = torch.cat([parameter.detach().new_empty(0) for parameter in parameters])  # Of the widest type.
        self._whole_P = like.new_zeros(self._shard_size * _world_size())
        self._entries = self._whole_P[:num_entries]
        self._received_P = torch.empty_like(self._whole_P) if by_messages(self._whole_P) else None

    def scatter_mean(self, gradients: Sequence[Tensor], shard_S: Tensor, *, add: bool) -> None:
        """Write this rank's shard of the mean over the ranks to `shard_S`, or add it to what is there. Collective.

        Args:
            gradients: of each parameter.
            shard_S: of this rank.
            add: whether to add.
        """
        each = zip(gradients, self._parameters, strict=True)
        torch.cat([_in_memory_order(gradient, parameter) for gradient, parameter in each], out=self._entries)
        parts = self._parts()
        if add:
            for part_S in parts:
                shard_S.add_(part_S, alpha=1 / _world_size())
        else:
            _sum(parts, shard_S)
            if _world_size() > 1:
                shard_S /= _world_size()

    def new_shards(self, num_backwards: int) -> Tensor:
        """Return room for the shards of several gradients: (G, S)."""
        return self._room.shards(num_backwards, self._shard_size, self._whole_P)

    def gather(self, shard_S: Tensor) -> list[Tensor]:
        """Return the whole gradient of each parameter, from the shards of all ranks. Collective.

        The gradients live in this object's memory until the next call of any method.
        """
        whole_P = self._whole_P
        if self._received_P is not None:
            parts = whole_P.split(self._shard_size)
            _exchange([shard_S] * _world_size(), parts)
            parts[dist.get_rank()].copy_(shard_S)
        elif _world_size() > 1:
            with _old_names():
                dist.all_gather_into_tensor(whole_P, shard_S)
        else:
            whole_P.copy_(shard_S)
        gradients = self._entries.split(self._sizes)
        return [_as_in(entries, parameter) for entries, parameter in zip(gradients, self._parameters, strict=True)]

    def _parts(self) -> Sequence[Tensor]:
        """Return (S,) tensors whose sum is this rank's part of the sum over the ranks. Collective."""
        if _world_size() == 1:
            return [self._whole_P]
        if self._received_P is not None:
            return _to_me(self._whole_P, self._received_P)
        sum_S = self._whole_P.new_empty(self._shard_size)
        with _old_names():
            dist.reduce_scatter_tensor(sum_S, self._whole_P)
        return [sum_S]


class ReduceScatter:
    """A reduce-scatter over all ranks on the CPU, for `FSDPModule.set_custom_reduce_scatter`.

    Gloo's own one sends everything to everybody: twice as much between two ranks.
    """

    def __init__(self) -> None:
        self._received_P = torch.empty(0)

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return memory for what is sent, or for the result."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: dist.ReduceOp.RedOpType,
        async_op: bool = False,
    ) -> None:
        """Write this rank's part of the sum, or of the mean, over the ranks to `output_tensor`. Collective."""
        if len(self._received_P) < len(input_tensor) or self._received_P.dtype != input_tensor.dtype:
            self._received_P = torch.empty_like(input_tensor)
        _sum(_to_me(input_tensor, self._received_P[: len(input_tensor)]), output_tensor)
        if op == dist.ReduceOp.AVG:
            output_tensor /= _world_size()


def part_of(gradients_P: Tensor, number: int, num_parts: int) -> Tensor:
    """Return one of `num_parts` equal parts, padded with zeros: (S,)."""
    return nn.functional.pad(gradients_P, [0, -len(gradients_P) % num_parts]).chunk(num_parts)[number]


def mean(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the means over the ranks, by one message. Collective."""
    if _world_size() == 1:
        return gradients
    flat_P = torch.cat([_in_memory_order(gradient, gradient) for gradient in gradients])
    dist.all_reduce(flat_P)
    flat_P /= _world_size()
    parts = flat_P.split([gradient.numel() for gradient in gradients])
    return [_as_in(part, gradient) for part, gradient in zip(parts, gradients, strict=True)]


def gather(shard_S: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the parts of all ranks of a group, one after another. Collective."""
    whole_P = shard_S.new_empty(len(shard_S) * dist.get_world_size(group))
    with _old_names():
        dist.all_gather_into_tensor(whole_P, shard_S.contiguous(), group)
    return whole_P


def _to_me(sent_P: Tensor, room_P: Tensor) -> list[Tensor]:
    """Return this rank's part of what each rank sends, its own first: (S,) each. Collective.

    Args:
        sent_P: equal parts, one for each rank.
        room_P: as long; what the others send is written there.
    """
    rank, size = dist.get_rank(), len(sent_P) // _world_size()
    sent, received = sent_P.split(size), room_P.split(size)
    _exchange(sent, received)
    return [sent[rank], *received[:rank], *received[rank + 1 :]]


def _sum(parts: Sequence[Tensor], sum_S: Tensor) -> None:
    """Write the sum of some parts to `sum_S`."""
    if len(parts) == 1:
        sum_S.copy_(parts[0])
        return
    torch.add(parts[0], parts[1], out=sum_S)
    for part_S in parts[2:]:
        sum_S += part_S


def _exchange(sent: Sequence[Tensor], received: Sequence[Tensor]) -> None:
    """Send `sent[r]` to each other rank r, and receive in `received[r]` what it sends to this one. Collective."""
    others = [other for other in range(dist.get_world_size()) if other != dist.get_rank()]
    messages = [dist.P2POp(dist.isend, sent[other], other) for other in others]
    messages += [dist.P2POp(dist.irecv, received[other], other) for other in others]
    for message in dist.batch_isend_irecv(messages):
        message.wait()


def by_messages(tensor: Tensor) -> bool:
    """Return whether to send single messages: gloo's reduce-scatter would send everything to everybody."""
    return _world_size() > 1 and tensor.device.type == "cpu"


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _order(tensor: Tensor) -> list[int]:
    """Return the dimensions, that of the largest stride first."""
    return sorted(range(tensor.dim()), key=tensor.stride, reverse=True)


def _in_memory_order(tensor: Tensor, like: Tensor) -> Tensor:
    """Return the entries in the order in which those of `like` lie in memory: (P,). No copy where they lie so, too."""
    return tensor.permute(_order(like)).flatten()


def _as_in(entries: Tensor, like: Tensor) -> Tensor:
    """Return entries in memory order as a tensor of another one's shape and memory format."""
    order = _order(like)
    inverse = sorted(range(like.dim()), key=order.__getitem__)
    return entries.view([like.shape[dimension] for dimension in order]).permute(inverse).to(like.dtype)


@contextmanager
def _old_names() -> Iterator[None]:
    """Silence what torch 2.13 says of the names of two collectives, whose new ones torch 2.9 does not know."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
        yield
