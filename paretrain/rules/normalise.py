"""Normalised gradients: apply a rule to g_t / c_t instead of g_t.

Shapes: T tasks, A active tasks (A <= T).
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from paretrain.rules.gradients import MinNormWeighting
from paretrain.rules.rule import Weighting, Weights, refuse_to_hide_losses, unfinished

Scale = Literal["l2", "loss", "loss+"]

SCALES: Mapping[Scale, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "l2": lambda norms_A, losses_A: norms_A,
    "loss": lambda norms_A, losses_A: losses_A,
    "loss+": lambda norms_A, losses_A: norms_A * losses_A,
}
"""How c_t follows from the gradient's norm and the loss; the names are those of Sener & Koltun's published code."""


class Normalised:
    """Apply any rule to the gradients g_t / c_t.

    The rule's α weighs the normalised gradients, so each g_t gets α_t / c_t, rescaled to keep the rule's Σ |α_t| (1 for
    weights >= 0 that sum to 1).

    A task whose c_t is 0 gets α = 0 in that step: one whose gradient is 0 and, with `loss` and `loss+`, a finished one,
    whose loss is 0 or below 1e-12 of the largest loss. If that holds for all tasks, every α is 0.

    Where the min-norm point of the normalised gradients leaves α open, as that of parallel gradients does, the most
    even α is taken: c_t would otherwise make the length of the step depend on the order of the tasks.

    Args:
        rule: gets the Gram matrix of the normalised gradients, and the losses unchanged.
        scale: `l2`: c_t is the gradient's norm; `loss`: the loss; `loss+`: their product.
        reference: apply the rule's α to the original gradients g_t, as the published code of Sener & Koltun 2018 does.
            The combined gradient is then not a min-norm point and may increase the loss of a task: for comparison only.

    Raises:
        ValueError: the rule learns from the losses after the step.
    """

    def __init__(self, rule: Weighting, scale: Scale, reference: bool = False) -> None:
        refuse_to_hide_losses(rule, "normalise")
        self._rule = rule
        self._name = f"normalise '{scale}'"
        self._scale = SCALES[scale]
        self._needs_losses = scale != "l2"
        self._reference = reference

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Normalise, apply the rule and undo the normalisation; `certified` is the rule's."""
        from paretrain.minnorm.symmetric import most_even  # as in MinNormWeighting

        alpha_A, kept_A = np.zeros(len(tasks_A)), gram_AA.diagonal() > 0
        if self._needs_losses:
            kept_A &= unfinished(losses_A, tasks_A, self._name)
        if not kept_A.any():
            return Weights(alpha_A)
        kept = np.flatnonzero(kept_A)
        gram_KK, losses_K = gram_AA[np.ix_(kept, kept)], losses_A[kept]
        scales_K = self._scale(np.sqrt(gram_KK.diagonal()), losses_K)
        gram_KK = gram_KK / np.outer(scales_K, scales_K)
        weights = self._rule(gram_KK, losses_K, tasks_A[kept])
        is_min_norm = isinstance(self._rule, MinNormWeighting)
        alpha_K = most_even(gram_KK, weights.alpha_A) if is_min_norm else weights.alpha_A
        alpha_A[kept] = alpha_K if self._reference else _undo(alpha_K, scales_K)
        return Weights(alpha_A, weights.certified)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the rule."""
        return self._rule.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of the rule."""
        self._rule.load_state_dict(state)


def _undo(alpha_K: np.ndarray, scales_K: np.ndarray) -> np.ndarray:
    raw_K = alpha_K / scales_K
    rescaled_K: np.ndarray = raw_K * (np.abs(alpha_K).sum() / (np.abs(raw_K).sum() or 1.0))
    return rescaled_K
