"""The autograd node that is the split and the first linear layer of T stacked heads at once.

Task t's outputs depend on z through its own weights alone, so its gradient with respect to z is g_t = E_t W_t. The
errors and the weights suffice: no task needs a gradient of the size of z, and T = 10,000 heads fit.

Shapes: T tasks, B samples, C outputs a task, D representation width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from paretrain.factored import Factored, Factors
from paretrain.gram import stacked_gram, stacked_norms
from paretrain.split import Weighed, Weigher, anchor


def stacked_linear(z_BD: Tensor, weight_TCD: Tensor, bias_TC: Tensor | None, weigher: Weigher) -> Tensor:
    """Apply T linear layers to one z: (B, T, C).

    Backward gives weight and bias their own unweighted gradients (0 for dropped tasks), and z the gradient Σ α_t g_t,
    with the α of `weigher`. The outputs of a task must reach the loss of that task alone.
    """
    outputs_BTC: Tensor = _StackedLinear.apply(  # type: ignore[no-untyped-call]
        z_BD, weight_TCD, bias_TC, weigher, anchor(z_BD)
    )
    return outputs_BTC


def is_stacked(node: Any) -> bool:
    """Return whether an autograd node is one of `stacked_linear`, whose output holds those of all tasks."""
    return getattr(node, "_forward_cls", None) is _StackedLinear


class _StackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z_BD: Tensor, weight_TCD: Tensor, bias_TC: Tensor | None, weigher: Weigher, _: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(z_BD, weight_TCD)
        ctx.has_bias, ctx.weigher = bias_TC is not None, weigher
        outputs_BN = F.linear(z_BD, weight_TCD.flatten(0, 1), None if bias_TC is None else bias_TC.flatten())
        return torch.unflatten(outputs_BN, 1, weight_TCD.shape[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, errors_BTC: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None, None]:
        z_BD, weight_TCD = ctx.saved_tensors
        # Under autocast the outputs, and so the errors, are of a lower precision than the parameters.
        errors_BTC, z_BD = errors_BTC.to(weight_TCD), z_BD.to(weight_TCD)

        def combine(weighed: Weighed) -> list[Tensor]:
            errors, weights = _without(weighed.dropped, errors_BTC, weight_TCD)
            return [(errors * weighed.alpha_T.to(weights)[:, None]).flatten(1) @ weights.flatten(0, 1)]

        weigher: Weigher = ctx.weigher
        weighed = weigher.found
        if weighed is None:
            weighed = weigher.receive(_gram(weigher, errors_BTC, weight_TCD), combine)
        combined_BD = combine(weighed)[0] if weighed else None
        own_BTC, _ = _without(weighed.dropped if weighed else [], errors_BTC, weight_TCD)
        weight_gradient_TCD = (own_BTC.flatten(1).T @ z_BD).view_as(weight_TCD)
        return combined_BD, weight_gradient_TCD, own_BTC.sum(dim=0) if ctx.has_bias else None, None, None


def _gram(weigher: Weigher, errors_BTC: Tensor, weight_TCD: Tensor) -> Tensor | Factored:
    if weigher.multiplies(*weight_TCD.shape[1:]):
        return Factored([Factors(errors_BTC, weight_TCD)])
    return (stacked_gram if weigher.needs_gram else stacked_norms)(errors_BTC, weight_TCD)


def _without(dropped: list[int], errors_BTC: Tensor, weight_TCD: Tensor) -> tuple[Tensor, Tensor]:
    """Return copies with zeros for the dropped tasks; the tensors themselves if there is none."""
    if dropped:
        errors_BTC, weight_TCD = errors_BTC.clone(), weight_TCD.clone()
        errors_BTC[:, dropped] = weight_TCD[dropped] = 0
    return errors_BTC, weight_TCD
