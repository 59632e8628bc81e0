"""The closed form for tasks that are all alike (equation 8)."""

import math
from dataclasses import dataclass

from scipy.optimize import brentq


@dataclass(frozen=True)
class ExchangeableLimit:
    """Hold κ, the test error and the training error of each of the tasks."""

    kappa: float
    test: float
    train: float


def exchangeable_limit(
    num_tasks: float, common: float, own: float, ratio: float, *, cosine: float, squared_norm: float, noise: float
) -> ExchangeableLimit:
    """Return the limits for Γ = squared_norm · [ρ 11ᵀ + (1-ρ) I], common penalty λ, own penalty μ, γ = p/n.

    `num_tasks` may be math.inf: infinitely many tasks know the common part exactly.
    """
    if math.isinf(num_tasks):
        first, smallest, signals = 0.0, 0.0, (0.0, squared_norm * (1 - cosine))
    else:
        first = 1 / num_tasks
        smallest = common * own / (common + num_tasks * own)
        signals = (squared_norm * (1 + (num_tasks - 1) * cosine), squared_norm * (1 - cosine))

    def greens(kappa: float) -> tuple[float, float]:
        return (1 / (kappa + smallest) if first else 0.0), 1 / (kappa + own)

    def excess(kappa: float) -> float:
        of_common, of_own = greens(kappa)
        return kappa * (1 + ratio * (first * of_common + (1 - first) * of_own)) - 1

    # The left side rises in κ, is -1 at 0 and not negative at 1; below 1e-300 it would be 0 in floating point.
    kappa = math.exp(brentq(lambda log: excess(math.exp(log)), -690.0, 0.0, xtol=1e-15, rtol=1e-15, maxiter=500))
    of_common, of_own = greens(kappa)
    spread = first * of_common**2 + (1 - first) * of_own**2
    bias = first * (of_common * smallest) ** 2 * signals[0] + (1 - first) * (of_own * own) ** 2 * signals[1]
    test = (bias + noise) / (1 - ratio * kappa**2 * spread)
    return ExchangeableLimit(kappa, test, kappa**2 * test)
