"""The best tuning of coupled ridge regression over white features (equation 9).

Shapes: T tasks.
"""

import numpy as np

from paretrain.theory.arrays import Array


def optimal_penalty(signal_TT: Array) -> Array:
    """Return Q* = Γ⁻¹; with `optimal_weights` it is the best, and so is any common multiple of both."""
    return np.linalg.inv(signal_TT).astype(float)


def optimal_weights(ratio_T: Array, noise_T: Array) -> Array:
    """Return a* = n/(p σ²) of each task."""
    return 1 / (ratio_T * noise_T)


def optimal_common_and_own(ratio: float, *, cosine: float, squared_norm: float, noise: float) -> tuple[float, float]:
    """Return (λ*, μ*) for tasks that are all alike, with weights 1."""
    return ratio * noise / (cosine * squared_norm), ratio * noise / ((1 - cosine) * squared_norm)
