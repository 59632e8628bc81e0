"""Losses as callers give them, sums or means over labelled samples and the number of those samples; their global means.

Shapes: T tasks.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Values = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""(T,), or one tensor of no dimension per task; or such tensors by the names of the tasks."""

Counts = Tensor | Sequence[Tensor] | Sequence[float] | Mapping[str, Tensor] | Mapping[str, float]
"""(T,), or one number per task; or such numbers by the names of the tasks."""


class Totals(NamedTuple):
    """A step's losses, as its backward needs them.

    Attributes:
        losses_T: this rank's part of the global mean losses: over the ranks they sum to them. Float64, detached.
        counts_T: labelled samples over all ranks, float64.
        faults_FT: where any rank found one of `FAULTS`.
        scaled: whether the gradients were scaled up, so that they may overflow where the losses do not.
    """

    losses_T: Tensor
    counts_T: Tensor
    faults_FT: Tensor
    scaled: bool = False


class Losses(NamedTuple):
    """The losses of this rank, (T,) each.

    Attributes:
        sums_T: each task's loss, summed over this rank's labelled samples.
        counts_T: float64, the number of those samples, on the same device.
        faults_FT: float64, for each of `FAULTS`: 1 for the tasks that have it.
    """

    sums_T: Tensor
    counts_T: Tensor
    faults_FT: Tensor


FAULTS = (
    "a count that is negative or not finite",
    "a loss, but a count of 0. Count its samples, or give 0 as the loss: a sum over no samples",
    "a mean (reduction='mean', or .mean()) in place of a sum. Call total(means=..., counts=...), or reduce by a sum",
    "a loss that reads z, or another task's view of z, beside or in place of its own. Give each head the view that "
    "split() returned for its task alone; a penalty on z is added to what total() returns",
)
MISWIRED = 3
"""The place in FAULTS of what only a walk of the graph can see: paretrain/wiring.py."""


def read_losses(
    names: Sequence[str], sums: Values | None, means: Values | None, counts: Counts | None, num_samples: int | None
) -> Losses:
    """Bring losses, as a caller gave them, into one form.

    Args:
        names: of the tasks.
        sums: the losses as sums, or None.
        means: the losses as means, or None.
        counts: labelled samples; None: `num_samples` of every task.
        num_samples: how many samples this rank has; None if that is not known.

    Raises:
        TypeError: neither sums nor means, or both.
        ValueError: not one loss and one count for each task, or other names than those of the tasks.
    """
    if (sums is None) == (means is None):
        raise TypeError("give total() the losses once: sums=... if they are summed over samples, means=... if averaged")
    losses = _in_order(means if sums is None else sums, names, "losses")
    if not isinstance(losses, Tensor):
        _check_each(losses, len(names))
    if counts is None:
        if num_samples is None:
            raise ValueError(
                "give counts=..., the labelled samples of each task: they can be left out only where every sample is "
                "labelled and the step has one split, whose z has the samples along its first dimension"
            )
        counts = [num_samples] * len(names)
    device = losses.device if isinstance(losses, Tensor) else next((loss.device for loss in losses), None)
    counts_T = torch.as_tensor(_in_order(counts, names, "counts"), dtype=torch.float64, device=device)
    if means is None:
        sums_T = losses if isinstance(losses, Tensor) else torch.stack(list(losses))
    else:
        sums_T = _summed(losses, counts_T)
    if sums_T.shape != (len(names),) or counts_T.shape != (len(names),):
        found = f"{tuple(sums_T.shape)} losses and {tuple(counts_T.shape)} counts"
        raise ValueError(f"expected one loss and one count a task, {(len(names),)}; found {found}")
    reduced_T = _reduced_by_mean(losses, len(names)) if means is None and num_samples not in (None, 1) else None
    return Losses(sums_T, counts_T, _faults(sums_T.detach(), counts_T, reduced_T))


def refuse_positional(losses: Sequence[object]) -> None:
    """Raise TypeError if losses were given without a keyword: a mean taken for a sum trains wrongly."""
    if losses:
        raise TypeError(
            "losses are given by keyword: total(sums=..., counts=...) if they are summed over the labelled samples, "
            "total(means=..., counts=...) if they are their means. The same holds for look()"
        )


def means_of(sums_T: Tensor, counts_T: Tensor) -> Tensor:
    """Return mean losses, or this rank's part of them if the counts are global; 0 for a task without samples."""
    return sums_T / divisors(counts_T).to(sums_T.dtype)


def divisors(counts_T: Tensor) -> Tensor:
    """Return the counts, with 1 in place of 0. Sample weights may sum to less than 1."""
    return counts_T.where(counts_T > 0, 1)


def _in_order(values: Any, names: Sequence[str], what: str) -> Any:
    """Return values by name, in a dict or a named tuple, in the order of the tasks; others as they are."""
    by_name = values._asdict() if hasattr(values, "_asdict") else values
    if not isinstance(by_name, Mapping):
        return values
    by_name = {f"{name}": value for name, value in by_name.items()}  # Tasks without names are numbers.
    if by_name.keys() != set(names):
        if (
            not isinstance(values, Mapping)
            and len(by_name) == len(names)
            and list(names) == [f"{t}" for t in range(len(names))]
        ):
            return values  # A named tuple, and tasks that have no names.
        raise ValueError(f"expected {what} of the tasks {', '.join(names)}; found those of {', '.join(by_name)}")
    return [by_name[name] for name in names]


def _check_each(losses: Sequence[object], num_tasks: int) -> None:
    """Refuse a list of losses that is not one tensor for each task."""
    if len(losses) != num_tasks:
        raise ValueError(f"expected one loss for each of {num_tasks} tasks, found {len(losses)}")
    if any(loss is None for loss in losses):
        raise TypeError(
            "expected losses as tensors, found None. For a task without labels run its head all the same, and give a "
            "sum of 0 or a mean of NaN, and the count 0"
        )
    if kinds := sorted({type(loss).__name__ for loss in losses if not isinstance(loss, Tensor)}):
        raise TypeError(
            f"expected losses as tensors, whose backward is to run; found {', '.join(kinds)}: leave out .item()"
        )


def _summed(means: Tensor | Sequence[Tensor], counts_T: Tensor) -> Tensor:
    """Turn means into sums. That over no samples, which is mostly NaN, is 0 and gets no gradient but 0."""
    if not isinstance(means, Tensor):
        counted = (counts_T != 0).tolist()
        means = torch.stack(
            [mean if is_counted else _absent(mean) for mean, is_counted in zip(means, counted, strict=True)]
        )
    # In float32 at least: a sum over many samples does not fit float16.
    wide_T = means.to(torch.promote_types(means.dtype, torch.float32))
    return wide_T.where(counts_T != 0, 0) * counts_T.to(wide_T.dtype)


def _absent(mean: Tensor) -> Tensor:
    """Return 0 in place of a mean over no samples."""
    # The gradient 0 of 0 / 0 is NaN, so none at all goes back into such a division. Elsewhere 0 goes back, since under
    # FSDP and ZeRO the same parameters must have a gradient on every rank.
    divides = _is(mean.grad_fn, "DivBackward") and not bool(mean.isfinite())
    zero: Tensor = _Absent.apply(mean, divides)  # type: ignore[no-untyped-call]
    return zero


class _Absent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, divides: bool) -> Tensor:
        ctx.divides = divides
        return torch.zeros_like(mean)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        return None if ctx.divides else torch.zeros_like(gradient), None


def _faults(sums_T: Tensor, counts_T: Tensor, reduced_T: Sequence[bool] | None) -> Tensor:
    bad_T = ~((counts_T >= 0) & (counts_T < torch.inf))
    size_T = sums_T.abs()
    uncounted_T = (counts_T == 0) & (size_T > 0) & (size_T < torch.inf)
    found_T = torch.as_tensor(reduced_T, device=sums_T.device) if reduced_T else torch.zeros_like(bad_T)
    return torch.stack([bad_T, uncounted_T, found_T, torch.zeros_like(bad_T)]).double()


def _reduced_by_mean(losses: Tensor | Sequence[Tensor], num_tasks: int) -> list[bool] | None:
    if isinstance(losses, Tensor):
        node: Any = losses.grad_fn
        if _is(node, "StackBackward"):
            return [_is_mean(each) for each, _ in node.next_functions]
        return [_is_mean(node)] * num_tasks
    return [_is_mean(loss.grad_fn) for loss in losses]


def _is_mean(node: Any) -> bool:
    """Return whether an autograd node is a mean, or a loss function of PyTorch with reduction='mean'.

    So is a sum of means, and a mean times a number below 1. Times a larger one it can be a sum: the mean times the
    number of samples.
    """
    if _is(node, "MeanBackward") or (_is(node, "Loss") and getattr(node, "_saved_reduction", 0) == 1):
        return True
    inputs = [each for each, _ in getattr(node, "next_functions", ()) if each is not None]
    shrinks = (_is(node, "MulBackward") and 0 < _factor(node) < 1) or (_is(node, "DivBackward") and _factor(node) > 1)
    passes_on = any(_is(node, f"{name}Backward") for name in ("Add", "Sub", "Neg", "ToCopy", "Stack"))
    return bool(inputs) and (passes_on or (shrinks and len(inputs) == 1)) and all(map(_is_mean, inputs))


def _factor(node: Any) -> float:
    """Return the size of the number that a product or quotient was made with; NaN if it was no number on the CPU."""
    number = node._saved_other
    is_number = isinstance(number, Tensor) and number.numel() == 1 and not number.is_cuda
    return abs(float(number)) if is_number else float("nan")


def _is(node: Any, name: str) -> bool:
    return node is not None and name in type(node).__name__
