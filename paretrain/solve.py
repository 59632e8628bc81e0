"""The decision of one step: the whole batch's Gram matrix, losses and counts, and a rule -> a verdict. Pure.

    mask absent, zero and broken tasks  ->  ask the rule for α, or take the one that is held  ->  certify

Shapes: T tasks, A active tasks.
"""

import numpy as np

from paretrain.nonfinite import OnNonFinite
from paretrain.products import Among
from paretrain.renewal import Held, staleness
from paretrain.rules.constant import Uniform
from paretrain.rules.gradients import MinNormWeighting
from paretrain.rules.rule import Weighting, Weights
from paretrain.verdict import Batch, Outcome, Verdict

ZERO_GRADIENT = 1e-20
"""A task is inactive where its squared gradient norm is below this fraction of the mean over tasks. Left in, its zero
gradient would be the min-norm point, and the encoder would silently stop."""

BY_PRODUCTS = MinNormWeighting, Uniform
"""Rules that need no more of the Gram matrix than its products with vectors. A rule derived from one of them, or around
one, may do more with it."""


def solve_step(
    batch: Batch,
    rule: Weighting,
    on_nonfinite: OnNonFinite = "stop",
    scaled: bool = False,
    held: Held | None = None,
) -> Verdict:
    """Find α for one step, or decide why there is none.

    Args:
        batch: the numbers of the whole batch. Where it has only the diagonal of the Gram matrix, α is the held one.
        rule: turns the Gram matrix of the active tasks into their weights; one of `BY_PRODUCTS` where the batch has
            products in its place.
        on_nonfinite: what to do where a loss or gradient is not finite; see `Balancer`.
        scaled: whether the gradients were scaled up. A gradient that is not finite while all losses are is then an
            overflow.
        held: α of an earlier step, if there is one.

    Raises:
        ValueError: the rule raised it, or answered with something that is not one finite weight a task.
    """
    # By Cauchy-Schwarz the whole Gram matrix is finite where its diagonal is.
    holds = batch.gram_TT.ndim == 1 and batch.products is None
    norms_T = batch.gram_TT if batch.gram_TT.ndim == 1 else batch.gram_TT.diagonal()
    broken_losses_T, broken_gradients_T = ~np.isfinite(batch.losses_T), ~np.isfinite(norms_T)
    sound_T = ~(broken_losses_T | broken_gradients_T)
    usable_T = sound_T & (batch.counts_T > 0)
    outcome = _outcome(sound_T, usable_T, on_nonfinite, overflow=scaled and not broken_losses_T.any())
    active_T, alpha_T, min_norm, gap, certified = np.zeros_like(sound_T), np.zeros(len(sound_T)), 0.0, 0.0, True
    stale = np.nan
    if outcome is Outcome.WEIGHED:
        active_T = usable_T & (norms_T > ZERO_GRADIENT * norms_T[sound_T].mean())
    if active_T.any() and holds:
        assert held is not None, "what else would the step hold?"
        alpha_T[active_T] = held.alpha_T[active_T]
        min_norm, gap, certified = held.min_norm, held.gap, held.certified
        stale = np.nan if held.stale is None else held.stale
    elif active_T.any():
        gram_AA = _among(batch, active_T)
        weights = _ask(rule, gram_AA, batch.losses_T[active_T], np.flatnonzero(active_T))
        slopes_A = gram_AA @ weights.alpha_A
        min_norm = float(weights.alpha_A @ slopes_A)
        gap = float(min_norm - slopes_A.min())
        alpha_T[active_T], certified = weights.alpha_A, weights.certified
        stale = staleness(gram_AA, held.alpha_T[active_T]) if held else np.nan
    return Verdict(
        outcome=outcome,
        alpha_T=alpha_T,
        min_norm=min_norm,
        gap=gap,
        certified=certified,
        active_T=active_T,
        losses_T=batch.losses_T,
        broken_losses_T=broken_losses_T,
        broken_gradients_T=broken_gradients_T,
        broken_W=batch.broken_W,
        stale=stale,
    )


def _among(batch: Batch, active_T: np.ndarray) -> np.ndarray | Among:
    """Return the Gram matrix of the active tasks."""
    if batch.products is not None:
        return Among(batch.products, active_T.nonzero()[0])
    return batch.gram_TT if active_T.all() else batch.gram_TT[np.ix_(active_T, active_T)]


def _outcome(sound_T: np.ndarray, usable_T: np.ndarray, on_nonfinite: OnNonFinite, overflow: bool) -> Outcome:
    if sound_T.all():
        return Outcome.WEIGHED
    if overflow:
        return Outcome.OVERFLOWED
    if on_nonfinite == "skip_step":
        return Outcome.SKIPPED
    if on_nonfinite == "drop_task" and usable_T.any():
        return Outcome.WEIGHED
    return Outcome.STOPPED


def _ask(rule: Weighting, gram_AA: np.ndarray | Among, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
    if isinstance(gram_AA, np.ndarray):
        weights = rule(gram_AA, losses_A, tasks_A)
    else:
        assert isinstance(rule, BY_PRODUCTS), "no other rule is given products"
        weights = rule.by_products(gram_AA, tasks_A)
    if weights.alpha_A.shape != (len(gram_AA),) or not np.isfinite(weights.alpha_A).all():
        raise ValueError(f"expected {len(gram_AA)} finite weights, found {weights.alpha_A}")
    return weights
