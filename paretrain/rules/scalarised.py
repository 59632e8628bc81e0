"""Rules that follow the gradient of one function of the losses, without memory.

Shapes: A active tasks.
"""

import numpy as np

from paretrain.rules.rule import Stateless, Weights, inverse_losses, share, softmax


class ScaleInvariant(Stateless):
    """Scale-invariant weights (SI in Navon et al. 2022, arXiv 2202.01017): α ∝ 1/L, the gradient of Σ_t log L_t.

    A loss that is multiplied by a constant gives the same direction. So do Kendall's weights at their optimum, see
    `Uncertainty`, and the geometric mean, see `GeometricMean`, whose step has another length. A finished task (its loss
    is 0, see `FINISHED`) has α = 0.
    """

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Weigh by the inverse losses, scaled to sum 1."""
        return Weights(share(inverse_losses(losses_A, tasks_A, "si")))


class GeometricMean(Stateless):
    """Geometric loss strategy (GLS; Chennupati et al. 2019, arXiv 1904.08492): α is the gradient of Π_t L_t^(1/A).

    α_t = Π_s L_s^(1/A) / (A L_t). For equal losses the weights are 1/A; else their sum is above 1, and the step is
    that of the geometric mean, which shrinks with the losses as that of the mean does. The mean is over tasks that are
    not finished (see `FINISHED`); a finished one has α = 0.
    """

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Differentiate the geometric mean."""
        inverse_A = inverse_losses(losses_A, tasks_A, "gls")
        left_A = losses_A[inverse_A > 0]
        return Weights(inverse_A * np.exp(np.log(left_A).mean()) / len(left_A) if len(left_A) else inverse_A)


class SmoothChebyshev(Stateless):
    """Smooth Chebyshev scalarisation (STCH; Lin et al. 2024, arXiv 2402.19078): α = softmax(L / μ).

    That is the gradient of μ log Σ_t exp(L_t / μ), a smooth maximum of the losses: equal preferences, and an ideal
    point of 0. The authors' multi-task code uses log L_t, divided by its mean in an early epoch, for L_t.

    Args:
        mu: μ, in units of the losses. A smaller one comes nearer to the maximum, so to the worst task alone.

    Raises:
        ValueError: a mu that is not positive.
    """

    def __init__(self, mu: float = 1.0) -> None:
        if not mu > 0:
            raise ValueError(f"mu must be > 0, found {mu}")
        self._mu = mu

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Differentiate the smooth maximum."""
        return Weights(softmax(losses_A / self._mu))


class SoftOptimalUncertainty(Stateless):
    """UW-SO (Kirchdorfer et al. 2024, arXiv 2408.07985): α = softmax(1 / (temperature L)).

    Kendall's weights at their optimum are 1/L; the softmax bounds how much one task can get. A finished task (its loss
    is 0, see `FINISHED`) has α = 0, where the paper's formula would give it all the weight.

    Args:
        temperature: a higher one gives more uniform weights; the paper tunes it.

    Raises:
        ValueError: a temperature that is not positive.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, found {temperature}")
        self._temperature = temperature

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Weigh by the softmax of the inverse losses."""
        inverse_A = inverse_losses(losses_A, tasks_A, "uw_so")
        alpha_A = np.zeros(len(losses_A))
        alpha_A[inverse_A > 0] = softmax(inverse_A[inverse_A > 0] / self._temperature) if inverse_A.any() else 0
        return Weights(alpha_A)
