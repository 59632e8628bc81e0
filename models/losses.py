"""Losses of one sample or pixel, from the outputs for it and its label. Tasks sum them over what is labelled.

Class weights multiply losses and do not count as samples: the loss of a batch is their sum over the plain number of
labelled samples. So it is linear in the samples, and its mean over batches, ranks and micro-batches is that of the
whole. (torch's mean divides by the sum of the weights, which is another number in every batch.)

Shapes: T tasks, C classes; `...` is any.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = tuple[float, ...] | tuple[tuple[float, ...], ...]
"""One weight a class, (C,); or those of several tasks, (T, C)."""


@dataclass(frozen=True)
class ClassLoss:
    """Cross-entropy, or the focal loss of Lin et al. 2017 (arXiv 1708.02002), with weights of the classes.

    Attributes:
        gamma: of the focal loss (1 - p)^γ · -log p, with the probability p of the right class; 0: cross-entropy.
        label_smoothing: ε: the target is 1 - ε for the right class, and ε / C more for every class, as torch has it.
        class_weights: factor of each class's term; None: 1.
    """

    gamma: float = 0.0
    label_smoothing: float = 0.0
    class_weights: Weights | None = None

    @property
    def is_plain(self) -> bool:
        """Whether this is cross-entropy and nothing more."""
        return not self.gamma and not self.label_smoothing and self.class_weights is None

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the losses, (...). `logits`: (..., C); `target`: (...) class index."""
        logits = widened(logits)
        losses = _cross_entropy(logits, target)
        if self.is_plain:
            return losses
        if self.gamma:
            # 1 - p, accurate where p is nearly 1; clamped, since the derivative of x^γ is infinite at 0 for γ < 1.
            losses = (-torch.expm1(-losses)).clamp(min=torch.finfo(losses.dtype).tiny) ** self.gamma * losses
        weights = torch.ones_like(logits[..., 0, :])
        if self.class_weights is not None:
            weights = _as_tensor(self.class_weights, logits.dtype, logits.device)
            losses = losses * weights.expand_as(logits).gather(-1, target.unsqueeze(-1)).squeeze(-1)
        if self.label_smoothing:
            every = (weights * (logits.logsumexp(dim=-1, keepdim=True) - logits)).mean(dim=-1)
            losses = (1 - self.label_smoothing) * losses + self.label_smoothing * every
        return losses


@dataclass(frozen=True)
class NumberLoss:
    """A loss of the residual, which is in standard deviations.

    Attributes:
        name: huber: half the square up to `delta`, linear beyond (Huber 1964). l1: the absolute value. l2: the square.
        delta: of huber.
    """

    name: Literal["huber", "l1", "l2"] = "huber"
    delta: float = 1.0

    def __call__(self, residual: Tensor) -> Tensor:
        """Return the losses, of the shape of the residuals."""
        if self.name == "huber":
            return F.huber_loss(residual, torch.zeros_like(residual), reduction="none", delta=self.delta)
        return residual.abs() if self.name == "l1" else residual.square()


CROSS_ENTROPY = ClassLoss()
HUBER = NumberLoss()
ABSOLUTE = NumberLoss("l1")

Loss = ClassLoss | NumberLoss


def grouped(losses: Sequence[Loss], num_outputs: int) -> list[tuple[list[int], Loss]]:
    """Group the losses of stacked tasks, as places and one loss for all of them: they may differ in class weights."""
    groups: dict[Loss, list[int]] = {}
    for place, loss in enumerate(losses):
        alike = replace(loss, class_weights=None) if isinstance(loss, ClassLoss) else loss
        groups.setdefault(alike, []).append(place)
    return [
        (places, _joined(alike, [losses[place] for place in places], num_outputs)) for alike, places in groups.items()
    ]


def _joined(alike: Loss, losses: Sequence[Loss], num_outputs: int) -> Loss:
    weights = [loss.class_weights for loss in losses if isinstance(loss, ClassLoss)]
    if not isinstance(alike, ClassLoss) or not any(weights):
        return alike
    return replace(alike, class_weights=tuple(each or (1.0,) * num_outputs for each in weights))  # type: ignore[arg-type]  # All are (C,).


def widened(output: Tensor) -> Tensor:
    """Widen outputs under autocast: losses are sums over many samples and need float32."""
    return output.to(torch.promote_types(output.dtype, torch.float32))


@lru_cache(maxsize=64)
def _as_tensor(weights: Weights, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return weights on the device. Kept, since a copy to a GPU would wait for it in every step."""
    return torch.tensor(weights, dtype=dtype, device=device)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return log Σ_c exp(x_c - x_target), with the term of the target as the constant 1.

    The derivative at the target is then minus the sum of the others instead of p - 1. It stays accurate when p is
    nearly 1, and the derivatives sum to zero within their own rounding, which the Gram matrix of stacked heads needs.
    """
    index = target.unsqueeze(-1)
    margins = logits - logits.gather(-1, index)
    return margins.scatter(-1, index, 0.0).logsumexp(dim=-1)
