"""Rules that make all gradients equally long, and differ in the length of the step: NTKMTL and DB-MTL.

Shapes: A active tasks.
"""

import numpy as np

from paretrain.rules.rule import Stateless, Weights, in_units_of_the_mean, unfinished


class NTKMTL(Stateless):
    """NTKMTL (Qin et al. 2025, arXiv 2510.18258) from one mini-batch a step, the authors' default: n = 1.

    α_t ∝ (Σ_s |g_s|² / |g_t|²)^power. The squared norm is the largest eigenvalue of the task's neural tangent kernel
    for n = 1, so a task that converges slowly gets more. With power = 1/2, the paper's, all gradients get one length:
    their root mean squared one. Where the authors' code sums over the tasks, this takes the mean.

    Args:
        power: a larger one gives more to tasks with short gradients. The authors recommend up to 0.75.

    Raises:
        ValueError: a power outside [0, 1].
    """

    def __init__(self, power: float = 0.5) -> None:
        if not 0 <= power <= 1:
            raise ValueError(f"power must be between 0 and 1, found {power}")
        self._power = power

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Weigh by the inverse norms. A zero gradient has weight 0."""
        squares_A = in_units_of_the_mean(gram_AA).diagonal()
        alpha_A = np.zeros(len(tasks_A))
        np.power(squares_A, -self._power, out=alpha_A, where=squares_A > 0)
        return Weights(alpha_A / len(tasks_A))


class DBMTL(Stateless):
    """DB-MTL (Lin et al. 2023, arXiv 2308.12029) without its moving average of gradients, which no Gram matrix has.

    The gradients of the logarithms of the losses, g_t / L_t, all get the length of the longest one: the step is the
    mean over t of  max_s(|g_s| / L_s) g_t / |g_t|,  where the authors have the sum. It is multiplied by the geometric
    mean of the losses, which takes back that the gradient of log L grows as L falls. A finished task (its loss is 0,
    see `FINISHED`) has α = 0.
    """

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Weigh by the inverse norms."""
        norms_A = np.sqrt(gram_AA.diagonal())
        left_A = unfinished(losses_A, tasks_A, "db_mtl") & (norms_A > 0)
        alpha_A = np.zeros(len(tasks_A))
        if left_A.any():
            longest = (norms_A[left_A] / losses_A[left_A]).max() * np.exp(np.log(losses_A[left_A]).mean())
            alpha_A[left_A] = longest / (norms_A[left_A] * left_A.sum())
        return Weights(alpha_A)
