"""Algorithm 2 of Sener & Koltun 2018 (arXiv 1810.04650), as the paper prints it: the page to read first.

One process, the whole batch at once, every sample labelled, plain gradient descent. Equation 4 bounds the min-norm
problem over the encoder's parameters by the one over the representation z (equation 5, MGDA-UB), which is what line 8
computes here. The rest of this library finds the same α and gradients in one pass, on any number of processes.
Numbers in brackets are the algorithm's lines. All gradients are taken at the parameters before the step.

Shapes: T tasks, N entries of z (the whole batch, flattened).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


def descend(
    encoder: nn.Module, heads: Sequence[nn.Module], losses: Sequence[Loss], x: Tensor, ys: Sequence[Tensor], rate: float
) -> Tensor:
    """Make one step of MGDA-UB on encoder and heads, in place. Return α, (T,)."""
    z = encoder(x).detach().requires_grad_()
    gradients = []
    for head, loss, y in zip(heads, losses, ys, strict=True):  # [1]
        parameters = list(head.parameters())
        *own, gradient = torch.autograd.grad(loss(head(z), y), [*parameters, z])
        _move(parameters, own, rate)  # [2]
        gradients.append(gradient.flatten())  # [3]
    gradients_TN = torch.stack(gradients)
    alpha_T = frank_wolfe(gradients_TN)  # [4]
    parameters, z = list(encoder.parameters()), encoder(x)
    combined = (alpha_T.to(gradients_TN) @ gradients_TN).view_as(z)
    _move(parameters, torch.autograd.grad(z, parameters, combined), rate)  # [5]
    return alpha_T


def frank_wolfe(gradients_TN: Tensor, max_iterations: int = 10_000) -> Tensor:
    """Approach the α on the simplex that minimises the norm of Σ α_t g_t (equation 5). Float64, (T,)."""  # [6]
    alpha_T = torch.full((len(gradients_TN),), 1 / len(gradients_TN), dtype=torch.float64)  # [7]
    gram_TT = gradients_TN.double() @ gradients_TN.double().T  # [8]
    for _ in range(max_iterations):  # [9]
        corner_T = torch.zeros_like(alpha_T)
        corner_T[(gram_TT @ alpha_T).argmin()] = 1  # [10]
        to_corner, to_alpha = gram_TT @ corner_T, gram_TT @ alpha_T
        fraction = _line_search(corner_T @ to_corner, corner_T @ to_alpha, alpha_T @ to_alpha)
        alpha_T = (1 - fraction) * alpha_T + fraction * corner_T  # [11], [12]
        if fraction < 1e-12:
            break  # [13]
    return alpha_T  # [14], [15]


def _line_search(aa: Tensor, ab: Tensor, bb: Tensor) -> float:
    """Algorithm 1: the γ in [0, 1] that minimises |γ a + (1 - γ) b|², from the inner products of a and b."""
    return 1.0 if ab >= aa else 0.0 if ab >= bb else float((bb - ab) / (aa - 2 * ab + bb))


def _move(parameters: Sequence[Tensor], gradients: Sequence[Tensor], rate: float) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.data -= rate * gradient
