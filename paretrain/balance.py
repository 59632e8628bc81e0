"""What one step's exchange found, as callers see it, and the errors that end a step.

Shapes: T tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from paretrain.losses import FAULTS
from paretrain.nonfinite import Broken, some
from paretrain.verdict import Outcome, Verdict


class BalanceError(RuntimeError):
    """No α could be found in this step. Every rank raises it with the same words."""


class NonFiniteError(BalanceError):
    """A loss or gradient is not finite, and `on_nonfinite` says stop, or leaves no task to go on with."""


@dataclass(frozen=True)
class Balance:
    """What one step's exchange found.

    Attributes:
        alpha_T: float64 weights; 0 for inactive tasks. Those of this project's rules are >= 0 and sum to 1 (to 0
            where no task is active); those of `tension`, and of TorchJD's rules, may be any finite numbers.
        min_norm: αᵀMα, the squared norm of the combined representation gradient.
        gap: duality gap αᵀMα - min_t (Mα)_t over the active tasks. For weights on the simplex it is 0 exactly at the
            min-norm point; it measures how far another rule, or a normalised one, is from it.
        certified: whether each min-norm problem that the rule solved is within the solver's tolerance. For `min_norm`
            that is the gap above; with normalised gradients or a preference, it is the gap of the modified problem.
            True for a rule that solves none.
        active_T: bool, the tasks with labels and a finite, non-zero gradient in this step, on any rank. Where there is
            none the encoder gets no gradient, and the caller must not step the optimizer.
        counts_T: labelled samples of each task over all ranks.
        losses_T: mean loss of each task over all ranks; not finite where it is broken.
        broken: what was not finite; None in a sound step.
        overflow: the gradients were scaled up and overflowed. No task is active, and the encoder's gradient is NaN on
            every rank, so that every rank's GradScaler skips the step and backs off.
        gram_TT: Gram matrix of the gradients of the mean losses; None except on rank 0 in a sound step that finds α.
        age: steps since α was found; 0 if it was in this one. Else min_norm, gap and certified are those of that step.
        held_steps: in a step that finds α, the number of steps that followed the weights before; 0 if there were none.
        stale: how stale weights had become when they were last found anew; see `renewal.staleness`. None: never.
    """

    alpha_T: np.ndarray
    min_norm: float
    gap: float
    certified: bool
    active_T: np.ndarray
    counts_T: np.ndarray
    losses_T: np.ndarray
    broken: Broken | None = None
    overflow: bool = False
    gram_TT: np.ndarray | None = None
    age: int = 0
    held_steps: int = 0
    stale: float | None = None

    @property
    def dropped(self) -> list[int]:
        """The tasks whose gradients must not be used in this step."""
        if self.broken is None or self.overflow:
            return []
        return self.broken.tasks if self.active_T.any() else list(range(len(self.alpha_T)))


def refuse_faults(faults_FT: Tensor, names: Sequence[str]) -> None:
    """Raise BalanceError if any rank found a fault in its losses; see `losses.FAULTS`."""
    places = faults_FT.cpu().nonzero().tolist()  # Of fault and task, in this order.
    if places:
        first = places[0][0]
        found = [repr(names[task]) for fault, task in places if fault == first]
        raise BalanceError(f"{some('task', found)}: {FAULTS[first]}")


def balance_of(
    verdict: Verdict, counts_T: np.ndarray, gram_TT: np.ndarray | None, names: Sequence[str], on_nonfinite: str
) -> Balance:
    """Read a verdict.

    Raises:
        NonFiniteError: the verdict is to stop. The message names tasks and ranks.
    """
    broken: Broken | None = None
    if (verdict.broken_losses_T | verdict.broken_gradients_T).any():
        ranks = tuple(np.flatnonzero(verdict.broken_W).tolist())
        broken = Broken(verdict.broken_losses_T, verdict.broken_gradients_T, ranks)
    if verdict.outcome is Outcome.STOPPED:
        assert broken is not None, "nothing else stops"
        alone = "; no other task has a label in this step" if on_nonfinite == "drop_task" else ""
        raise NonFiniteError(f"not finite: {broken.describe(names)}{alone}")
    return Balance(
        alpha_T=verdict.alpha_T,
        min_norm=verdict.min_norm,
        gap=verdict.gap,
        certified=verdict.certified,
        active_T=verdict.active_T,
        counts_T=counts_T,
        losses_T=verdict.losses_T,
        broken=broken,
        overflow=verdict.outcome is Outcome.OVERFLOWED,
        gram_TT=None if broken else gram_TT,
        stale=None if np.isnan(verdict.stale) else verdict.stale,
    )
