"""A representation of several tensors, such as the levels of a pyramid or two branches, and which of them a head takes.

The encoder returns a tuple. Its `width` is then a tuple too, and so is its `stride` where the tensors are maps.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

Z = Tensor | Sequence[Tensor]
"""The representation that an encoder returns and a head takes."""
Takes = int | Mapping[str, int] | None
"""Which tensor the heads take, counted from 0: the same for all tasks, or one for each; None: all of them."""
T = TypeVar("T")


def level_of(takes: Takes, task: str) -> int | None:
    """Return which tensor the head of a task takes; None: all of them."""
    return takes.get(task) if isinstance(takes, Mapping) else takes


def has_levels(encoder: nn.Module) -> bool:
    """Return whether an encoder says that it returns several tensors."""
    return isinstance(getattr(encoder, "width", None), list | tuple)


def number_of(encoder: nn.Module, attribute: str, level: int | None = None) -> int:
    """Return the `width` or `stride` of an encoder's z, or of one of its tensors; 0 if it has no such number.

    Raises:
        ValueError: it has several tensors, and `level` is none of them.
    """
    found = getattr(encoder, attribute, None)
    if isinstance(found, list | tuple):
        if level is None or not 0 <= level < len(found):
            raise ValueError(
                f"the encoder returns {len(found)} tensors, of {attribute} {', '.join(map(str, found))}, and this head "
                f"takes one: type model.head.takes={{TASK: NUMBER}}, or one number from 0 to {len(found) - 1} for all"
            )
        found = found[level]
    return found if isinstance(found, int) else 0


def taken(z: Sequence[T] | T, level: int | None) -> Sequence[T] | T:
    """Return one tensor of a representation; all of it if `level` is None."""
    return z if level is None else z[level]  # type: ignore[index]


def along_samples(zs: Sequence[Z]) -> Z:
    """Join the representations of several batches, whose samples then follow one another."""
    if isinstance(zs[0], Tensor):
        return torch.cat(list(zs))  # type: ignore[arg-type]  # All are tensors.
    return tuple(torch.cat(tensors) for tensors in zip(*zs, strict=True))
