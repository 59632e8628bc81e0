"""The processes that share a batch, and the collectives that the balancer needs of them."""

from dataclasses import dataclass
from typing import Any, Self

import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """A torch.distributed group, or this process alone."""

    group: dist.ProcessGroup | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return itself: a copy of a model belongs to the same processes."""
        return self

    @property
    def size(self) -> int:
        """Number of ranks."""
        return dist.get_world_size(self.group) if dist.is_initialized() else 1

    @property
    def rank(self) -> int:
        """This process's rank in the group."""
        return dist.get_rank(self.group) if dist.is_initialized() else 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over the ranks on every rank. Leaves `values` as they are."""
        if self.size > 1:
            on_wire = self._to_wire(values)
            values = on_wire.clone() if on_wire is values else on_wire
            dist.all_reduce(values, group=self.group)
        return values

    def reduce(self, values: Tensor) -> Tensor:
        """Return the sum over the ranks on rank 0; unspecified elsewhere. Overwrites `values`."""
        if self.size > 1:
            values = self._to_wire(values)
            dist.reduce(values, group_dst=0, group=self.group)
        return values

    def broadcast(self, values: Tensor) -> Tensor:
        """Return rank 0's values on every rank. Overwrites `values`."""
        if self.size > 1:
            values = self._to_wire(values)
            dist.broadcast(values, group_src=0, group=self.group)
        return values

    def broadcast_text(self, text: str) -> str:
        """Return rank 0's text on every rank."""
        box = [text]
        if self.size > 1:
            dist.broadcast_object_list(box, group_src=0, group=self.group)
        return box[0]

    def _to_wire(self, values: Tensor) -> Tensor:
        """Return the values where the group's backend can read them; a copy only where they must move."""
        on_gpu = dist.get_backend(self.group) == dist.Backend.NCCL
        return values if values.is_cuda == on_gpu else values.to("cuda" if on_gpu else "cpu")
