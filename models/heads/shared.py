"""Linear heads that are alike: w_t = w_0 + v_t with a ridge penalty on each (Evgeniou & Pontil 2004).

The penalty λ/2 |w_0|² + μ/2 Σ_t |v_t|² is minimised over w_0 in closed form, so that the heads hold w_t alone and are
evaluated, saved and exported as linear heads are. What is left is Σ_t P_t with

    P_t = μ/2 w_t · (w_t - μ/(λ + T μ) Σ_s w_s),

for each output apart; biases are free. P_t is a part of task t's loss, as a mean over the batch: a step in which task
t has no label leaves it out. It does not reach z, so that neither the gradients to balance nor α change by it, unless a
rule looks at losses.

Shapes: T tasks, B samples, C outputs a task, D representation width.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.heads.task_heads import BalancerLike, StackedHeads
from models.heads.vector import linear_head

NAME = "shared"


class PenalisedOutputs(NamedTuple):
    """What a model with shared heads gives while training: outputs (B, T, C), and each task's penalty (T,)."""

    heads: Tensor
    penalty_T: Tensor


class SharedHeads(StackedHeads):
    """T linear heads that are held together.

    Args:
        heads: linear heads, in task order.
        common: λ, for what all tasks have in common.
        own: μ, for what each task has of its own.
    """

    def __init__(self, heads: Sequence[nn.Sequential], common: float, own: float) -> None:
        super().__init__(heads)
        self.common = common
        self.own = own

    def forward(self, z_BD: Tensor, balancer: BalancerLike | None) -> Tensor | PenalisedOutputs:  # type: ignore[override]
        """Return outputs and penalties while training, the outputs alone at evaluation."""
        outputs_BTC = super().forward(z_BD, balancer)
        return PenalisedOutputs(outputs_BTC, self.penalties()) if self.training else outputs_BTC

    def penalties(self) -> Tensor:
        """Return P_t of each task, in float32 at least."""
        weight_TCD = self.first.weight_TCD.to(torch.promote_types(self.first.weight_TCD.dtype, torch.float32))
        factor = self.own / (self.common + len(weight_TCD) * self.own)
        pulled_TCD = weight_TCD - factor * weight_TCD.sum(dim=0)
        return 0.5 * self.own * (weight_TCD * pulled_TCD).sum(dim=(1, 2))


def shared_heads(width: int, num_outputs: Sequence[int], options: Mapping[str, Any]) -> SharedHeads:
    """Build a head for each task, `num_outputs[t]` wide, which must be the same for all.

    Raises:
        ValueError: an option that is missing, unknown or not a positive number.
    """
    if options.keys() != {"common", "own"} or not all(_is_positive(value) for value in options.values()):
        raise ValueError(
            f"head '{NAME}' takes two positive numbers, common (λ) and own (μ), found {dict(options)}. For instance: "
            "model.head={name: shared, options: {common: 1e-4, own: 1e-3}}"
        )
    return SharedHeads([linear_head(width, outputs) for outputs in num_outputs], **options)


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
