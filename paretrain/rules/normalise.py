"""Normalised gradients: a rule on g_t / c_t in place of g_t.

Shapes: T tasks, A active tasks (A <= T).
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from paretrain.rules.rule import Weighting, Weights, unfinished

Scale = Literal["l2", "loss", "loss+"]

SCALES: Mapping[Scale, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "l2": lambda norms_A, losses_A: norms_A,
    "loss": lambda norms_A, losses_A: losses_A,
    "loss+": lambda norms_A, losses_A: norms_A * losses_A,
}
"""c_t from the gradient's norm and the loss, as the code of Sener & Koltun 2018 names them."""


class Normalised:
    """Any rule, on the gradients g_t / c_t: its α belongs to them, so α_t / c_t is what the g_t themselves get.

    The result is rescaled so that Σ |α_t| stays what the rule gave: 1, for weights >= 0 that sum to 1.

    `loss` and `loss+` leave out a finished task (its loss is 0, or below 1e-12 of the largest one): there is nothing to
    divide by, and its α is 0 in that step. If all are finished, so are all α. The gradients of active tasks are never
    0, so `l2` always has something to divide by.

    Args:
        rule: sees the Gram matrix of the normalised gradients, and the losses as they are.
        scale: c_t is `l2`: the gradient's norm; `loss`: the loss; `loss+`: their product.
        reference: apply the rule's α to the gradients g_t as they are, as the paper's published code does. The combined
            gradient is then no min-norm point of anything, and may point uphill for some task: for comparison only.
    """

    def __init__(self, rule: Weighting, scale: Scale, reference: bool = False) -> None:
        self._rule = rule
        self._name = f"normalise '{scale}'"
        self._scale = SCALES[scale]
        self._needs_losses = scale != "l2"
        self._reference = reference

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Normalise, ask the rule, and undo the normalisation; `certified` is the rule's own."""
        alpha_A = np.zeros(len(tasks_A))
        kept = np.arange(len(tasks_A))
        if self._needs_losses:
            kept = np.flatnonzero(unfinished(losses_A, tasks_A, self._name))
            if not kept.size:
                return Weights(alpha_A)
        gram_KK, losses_K = gram_AA[np.ix_(kept, kept)], losses_A[kept]
        scales_K = self._scale(np.sqrt(gram_KK.diagonal()), losses_K)
        weights = self._rule(gram_KK / np.outer(scales_K, scales_K), losses_K, tasks_A[kept])
        alpha_A[kept] = weights.alpha_A if self._reference else _undo(weights.alpha_A, scales_K)
        return Weights(alpha_A, weights.certified)

    def state_dict(self) -> dict[str, Any]:
        """Return the rule's."""
        return self._rule.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back the rule's."""
        self._rule.load_state_dict(state)


def _undo(alpha_K: np.ndarray, scales_K: np.ndarray) -> np.ndarray:
    raw_K = alpha_K / scales_K
    return raw_K * (np.abs(alpha_K).sum() / (np.abs(raw_K).sum() or 1.0))
