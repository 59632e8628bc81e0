"""Collectives: `Runtime` is this process among its peers, and what they do together.

Every method that is marked collective must be called by all ranks, in the same order.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

from trainer.errors import SharedError
from trainer.runtime.faults.watch import Watch

Value = TypeVar("Value")


@dataclass(frozen=True)
class Runtime:
    """This process among its peers.

    Attributes:
        accelerator: places the model on its device, and wraps it for DDP.
        rank: this process, 0 to world_size - 1.
        world_size: number of processes that share each global batch.
        device: where the model lives.
        balance_group: the process group that reduces the Gram matrix, see parallel.exchange_group; None: the default
            group, or a single process.
        host_group: the same processes over gloo, for messages that never wait for a GPU; None for a single process.
        watch: the phase of this process and its time limit; None for a single process.
    """

    accelerator: Accelerator
    rank: int
    world_size: int
    device: torch.device
    balance_group: dist.ProcessGroup | None
    host_group: dist.ProcessGroup | None = None
    watch: Watch | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints and writes."""
        return self.rank == 0

    def set_phase(self, phase: str, *, patient: bool = False, step: int | None = None) -> None:
        """Name what begins here, for errors, and set the time limit of collectives.

        Args:
            phase: such as "the evaluation after step 12".
            patient: allow parallel.timeout_seconds, since processes take their own time here; else
                parallel.step_timeout_seconds.
            step: the step that the phase belongs to; None: the same as before.
        """
        if self.watch:
            self.watch.set_phase(phase, patient=patient, step=step)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over ranks on every rank. Collective."""
        total = values.to(self.device, copy=True)
        if self.world_size > 1:
            dist.all_reduce(total)
        return total.to(values.device)

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of rank 0. Collective."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def all_reduce_max(self, value: int) -> int:
        """Return the maximum over ranks on every rank. Collective; never waits for a GPU."""
        if self.world_size == 1:
            return value
        maximum = torch.tensor(value)
        dist.all_reduce(maximum, op=dist.ReduceOp.MAX, group=self.host_group)
        if self.watch:
            self.watch.restart()
        return int(maximum)

    def barrier(self) -> None:
        """Wait until every rank has reached this line. Collective."""
        self.all_reduce_max(0)

    def on_main(self, work: Callable[[], Value]) -> Value:
        """Call `work` on rank 0 and return its result, or raise its SharedError, on every rank. Collective.

        `work` itself must not communicate.
        """
        box: list[Any] = [None, None]
        if self.is_main:
            try:
                box[0] = work()
            except SharedError as error:
                box[1] = type(error), str(error)
        if self.world_size > 1:
            dist.broadcast_object_list(box, src=0)
        if box[1] is not None:
            kind, message = box[1]
            raise kind(message)
        return box[0]

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all ranks, in rank order, on every rank. Collective."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def gather_rows(self, rows: Tensor) -> Tensor | None:
        """Return the rows of all ranks, in rank order, on the CPU of rank 0; None on the others. Collective.

        Args:
            rows: of the same shape on every rank.
        """
        mine = rows.cpu()
        if self.world_size == 1:
            return mine
        mine = mine.contiguous()  # As gloo needs it.
        parts = [torch.empty_like(mine) for _ in range(self.world_size)] if self.is_main else None
        dist.gather(mine, parts, dst=0, group=self.host_group)
        return torch.cat(parts) if parts else None

    @contextmanager
    def raise_together(self) -> Iterator[None]:
        """Raise a SharedError of any rank inside the block on every rank, once all have left it. Collective.

        The block itself must not communicate: a rank that failed would leave the others waiting.
        """
        error: SharedError | None = None
        try:
            yield
        except SharedError as caught:
            error = caught
        faults = self.gather((type(error), str(error)) if error else None)
        broken = [(rank, *fault) for rank, fault in enumerate(faults) if fault is not None]
        if broken:
            ranks = ", ".join(str(rank) for rank, _, _ in broken)
            where = "" if len(broken) == self.world_size else f" (on rank {ranks} only)"
            _, kind, message = broken[0]
            raise kind(f"{message}{where}") from error
