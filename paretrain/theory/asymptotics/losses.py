"""Losses of labels ±1 by what the limits need: the proximal operator and the slope of the loss (equation 11)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from paretrain.theory.arrays import Array

_MAX_ITERATIONS = 200


@dataclass(frozen=True)
class Loss:
    """Describe ℓ(y, v) by its proximal operator, argmin_v δ ℓ(y, v) + (v - u)²/2, and its second derivative in v."""

    proximal: Callable[[Array, Array, Array], Array]
    curvature: Callable[[Array, Array], Array]


def _squared_proximal(u: Array, y: Array, delta: Array) -> Array:
    return (u + delta * y) / (1 + delta)


def logistic_proximal(u: Array, y: Array, delta: Array) -> Array:
    """Return argmin_v δ log(1 + exp(-y v)) + (v - u)²/2 for labels y = ±1, by Newton's method within a bracket.

    The solution lies between u and u + δ y, where the objective's slope changes its sign. For large δ plain Newton
    steps overshoot, or jump to and fro, without a warning: bisection replaces a step that leaves the bracket or is
    longer than half the step before.
    """
    margin = u * y  # with v = y t, the problem is argmin_t δ log(1 + exp(-t)) + (t - margin)²/2
    low, high = margin, margin + delta
    t = np.minimum(margin + delta * expit(-margin), high)
    rounding = 8 * np.finfo(float).eps
    move = high - low
    for _ in range(_MAX_ITERATIONS):
        probability = expit(-t)
        slope = t - margin - delta * probability
        low, high = np.where(slope < 0, t, low), np.where(slope >= 0, t, high)
        step = t - slope / (1 + delta * probability * (1 - probability))
        trusted = (step == t) | ((step > low) & (step < high) & (np.abs(step - t) <= move / 2))
        nearer = np.where(trusted, step, (low + high) / 2)
        move = np.abs(nearer - t)
        if np.all(move <= rounding * (1 + np.abs(t) + np.abs(margin))):
            return y * nearer
        t = nearer
    raise ArithmeticError(f"the proximal operator of the logistic loss did not settle for δ up to {np.max(delta):g}")


def _logistic_curvature(v: Array, y: Array) -> Array:
    curvature: Array = expit(v) * expit(-v)
    return curvature


SQUARED = Loss(_squared_proximal, lambda v, y: np.ones_like(v))
LOGISTIC = Loss(logistic_proximal, _logistic_curvature)
