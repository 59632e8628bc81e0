"""NaN and infinity: what was not finite in a step, and how the gradients of such tasks are zeroed.

Shapes: T tasks, W ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

OnNonFinite = Literal["stop", "skip_step", "drop_task"]
"""What a Balancer does when a loss, or a gradient with respect to the representation, is NaN or infinite."""

MAX_NAMES = 8
"""The most tasks or ranks that a message names; it counts the rest."""


@dataclass(frozen=True)
class Broken:
    """What was not finite in a step, over all tasks and ranks. Equal on every rank.

    Attributes:
        losses_T: bool, tasks whose loss is not finite.
        gradients_T: bool, tasks whose gradient with respect to the representation is not finite.
        ranks: the ranks it happened on; empty if only the sum over the ranks overflowed.
    """

    losses_T: np.ndarray
    gradients_T: np.ndarray
    ranks: tuple[int, ...]

    @property
    def tasks(self) -> list[int]:
        """Indices of the broken tasks."""
        return [int(task) for task in np.flatnonzero(self.losses_T | self.gradients_T)]

    def describe(self, names: Sequence[str]) -> str:
        """Return a description such as "loss and gradient of task 'left' on rank 1"."""
        both = self.losses_T & self.gradients_T
        kinds = {"loss and gradient": both, "loss": self.losses_T & ~both, "gradient": self.gradients_T & ~both}
        found = [
            f"{kind} of {some('task', [repr(name) for name, is_so in zip(names, of_T, strict=True) if is_so])}"
            for kind, of_T in kinds.items()
            if of_T.any()
        ]
        where = f"on {some('rank', self.ranks)}" if self.ranks else "in the sum over the ranks"
        return f"{', '.join(found)} {where}"


def zero_gradients(heads: Sequence[nn.Module] | nn.Module, tasks: Sequence[int], num_tasks: int) -> None:
    """Zero `.grad` of the heads of some tasks.

    Args:
        heads: a list of one module per task, or a module made of such lists and of parameters with one row per task.
        tasks: indices of the tasks.
        num_tasks: T.

    Raises:
        ValueError: `heads` has another form.
        RuntimeError: a parameter has no `.grad`: there was no backward, or the wrapper does not expose gradients.
    """
    if isinstance(heads, nn.ModuleList | Sequence):
        if len(heads) != num_tasks:
            raise ValueError(f"expected one head for each of {num_tasks} tasks, found {len(heads)}")
        for task in tasks:
            for _, gradient in _gradients(heads[task], recurse=True):
                gradient.zero_()
        return
    for name, gradient in _gradients(heads, recurse=False):
        if gradient.shape[:1] != (num_tasks,):
            found = tuple(gradient.shape)
            raise ValueError(f"expected heads with a row for each of {num_tasks} tasks; parameter {name} is {found}")
        _zero_rows(gradient, tasks)
    for child in heads.children():
        zero_gradients(child, tasks, num_tasks)


def _zero_rows(gradient: Tensor, rows: Sequence[int]) -> None:
    """Zero rows in place, also of a gradient whose rows FSDP2 has distributed over the ranks."""
    from torch.distributed.tensor import DTensor, distribute_tensor  # takes a second to import and is rarely needed

    zeroed = torch.zeros([len(gradient)] + [1] * (gradient.ndim - 1), dtype=torch.bool, device=gradient.device)
    zeroed[rows] = True
    if isinstance(gradient, DTensor):
        zeroed = distribute_tensor(zeroed, gradient.device_mesh, gradient.placements, src_data_rank=None)
    gradient.masked_fill_(zeroed, 0)


def _gradients(module: nn.Module, recurse: bool) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in module.named_parameters(recurse=recurse):
        if parameter.requires_grad:
            if parameter.grad is None:
                raise RuntimeError(
                    f"parameter {name} of a head has no .grad to zero: there was no backward, or the wrapper does not "
                    "expose gradients, as under ZeRO. Use on_nonfinite='stop' or 'skip_step' there"
                )
            yield name, parameter.grad


def some(word: str, items: Sequence[object]) -> str:
    """Return "task a", "tasks a, b" or "9 tasks: a, b, ..."."""
    shown = ", ".join(str(item) for item in items[:MAX_NAMES])
    if len(items) > MAX_NAMES:
        return f"{len(items):,} {word}s: {shown}, ..."
    return f"{word}{'s' if len(items) > 1 else ''} {shown}"
