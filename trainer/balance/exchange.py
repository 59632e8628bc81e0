"""The step's one exchange: pack -> reduce to rank 0 -> solve there -> broadcast status and α.

z is rank-local, so the Gram matrix of the whole batch is the plain sum of the ranks' Gram matrices: one symmetric T x T
matrix and T + W numbers travel, whatever the batch, the representation and the model weigh. Every rank sends and
receives the same two messages in every step, whatever happens, and leaves with the same α or with the same error.

Shapes: T tasks, A active tasks, W ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.balance.nonfinite import Broken, OnNonFinite
from trainer.balance.packing import pack, packed_size, unpack
from trainer.balance.ranks import Ranks
from trainer.balance.weightings import Weighting

ZERO_GRADIENT = 1e-20
"""A task is inactive where its squared gradient norm is below this fraction of the mean over tasks: left in, the
min-norm point would be its zero gradient and the encoder would silently stop."""


class BalanceError(RuntimeError):
    """No α could be found in this step. Raised on every rank with the same words."""


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
            min-norm point, and tells how far another rule, or a normalised one, is from it.
        certified: whether each min-norm problem that the rule solved is within the solver's tolerance. For `min_norm`
            that is the gap above; where the gradients are normalised or a preference is set, it is the gap of the
            problem so changed. A rule that solves none has nothing to certify, and it is True.
        active_T: bool, the tasks with labels and a finite, non-zero gradient in this step, on any rank. Where there is
            none the encoder gets no gradient, and no optimizer step must be made.
        counts_T: labelled samples of each task over all ranks.
        losses_T: mean loss of each task over all ranks; not finite where it is broken.
        broken: what was not finite; None in a sound step.
        overflow: the gradients were scaled up and overflowed. No task is active, and on EVERY rank the encoder's
            gradient is NaN, so that every rank's GradScaler skips the step and backs off.
        gram_TT: Gram matrix of the gradients of the mean losses; None except on rank 0 in a sound step.
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


class _Status(IntEnum):
    OK = 0
    UNCERTIFIED = 1
    SKIP = 2
    OVERFLOW = 3
    STOP = 4
    FAILED = 5


_ACTIVE, _BROKEN_LOSS, _BROKEN_GRADIENT = 1, 2, 4
"""What the verdict says of each task, in bits."""


def exchange(
    gram_TT: Tensor,
    losses_T: Tensor,
    counts_T: Tensor,
    *,
    rule: Weighting,
    ranks: Ranks,
    names: Sequence[str],
    on_nonfinite: OnNonFinite = "stop",
    scaled: bool = False,
) -> Balance:
    """Turn every rank's share of the Gram matrix into one α, the same on all ranks.

    Args:
        gram_TT: float64 Gram matrix of this rank's part of the gradients of the global mean losses; given away.
        losses_T: this rank's part of the global mean losses: they sum to them over the ranks.
        counts_T: labelled samples a task over all ranks, already global.
        rule: called on rank 0 only.
        ranks: the processes that share the batch.
        names: the tasks' names, for the error messages.
        on_nonfinite: see `Balancer`.
        scaled: whether the gradients were scaled up; if so, one that is not finite is an overflow where the losses are
            finite.

    Raises:
        NonFiniteError: a loss or gradient is not finite on some rank, and `on_nonfinite` has no way to go on.
        BalanceError: the rule failed on rank 0. The collectives match on all ranks in both cases: nobody is left
            waiting.
    """
    counts = counts_T.cpu().numpy()
    batch = _reduce(gram_TT, losses_T, ranks)
    verdict, failure = np.zeros(3 + 3 * len(counts) + ranks.size), ""
    if ranks.rank == 0:
        try:
            verdict = _decide(batch, counts, rule, on_nonfinite, scaled)
        except Exception as error:  # Whatever happened here, the other ranks wait for the broadcast.
            verdict[0], failure = _Status.FAILED, f"{type(error).__name__}: {error}"
    verdict = ranks.from_first(torch.from_numpy(verdict).to(gram_TT.device)).cpu().numpy()
    status = _Status(int(verdict[0]))
    if status is _Status.FAILED:
        raise BalanceError(f"the weighting failed on rank 0: {ranks.text_from_first(failure)}")
    balance = _read(verdict, counts, batch.gram_TT if ranks.rank == 0 else None)
    if status is _Status.STOP:
        assert balance.broken is not None, "nothing else stops"
        alone = "; no other task has a label in this step" if on_nonfinite == "drop_task" else ""
        raise NonFiniteError(f"not finite: {balance.broken.describe(names)}{alone}")
    return balance


def message_bytes(num_tasks: int, num_ranks: int) -> int:
    """Bytes that one rank sends or receives a step for α: the counts, the packed Gram matrix, the verdict; float64."""
    reduced, verdict = packed_size(num_tasks) + num_tasks + num_ranks, 3 + 3 * num_tasks + num_ranks
    return 8 * (num_tasks + reduced + verdict)


class _Batch(NamedTuple):
    """The whole batch's numbers, on rank 0; elsewhere unspecified."""

    gram_TT: np.ndarray
    losses_T: np.ndarray
    broken_W: np.ndarray
    """Not 0 where a rank's own part is not finite: NaN survives the sum over the ranks, but not whose it was."""


def _reduce(gram_TT: Tensor, losses_T: Tensor, ranks: Ranks) -> _Batch:
    broken_W = gram_TT.new_zeros(ranks.size)
    broken_W[ranks.rank] = ~(gram_TT.diagonal().isfinite() & losses_T.isfinite()).all()
    if ranks.size == 1:
        return _Batch(gram_TT.cpu().numpy(), losses_T.cpu().numpy(), broken_W.cpu().numpy())
    message = ranks.sum_to_first(pack(gram_TT, losses_T.to(gram_TT), broken_W)).cpu()
    reduced_TT = gram_TT.cpu()
    if ranks.rank == 0:
        unpack(message, reduced_TT)
    means_T, broken_W = message[packed_size(len(losses_T)) :].split([len(losses_T), ranks.size])
    return _Batch(reduced_TT.numpy(), means_T.numpy(), broken_W.numpy())


def _decide(
    batch: _Batch, counts_T: np.ndarray, rule: Weighting, on_nonfinite: OnNonFinite, scaled: bool
) -> np.ndarray:
    """Rank 0's part: the verdict."""
    # By Cauchy-Schwarz the rest of the matrix is finite where its diagonal is.
    norms_T = batch.gram_TT.diagonal()
    broken_loss_T, broken_gradient_T = ~np.isfinite(batch.losses_T), ~np.isfinite(norms_T)
    sound_T = ~(broken_loss_T | broken_gradient_T)
    usable_T = sound_T & (counts_T > 0)
    active_T, alpha_T, min_norm, gap = np.zeros_like(sound_T), np.zeros(len(counts_T)), 0.0, 0.0
    if not sound_T.all() and scaled and not broken_loss_T.any():
        status = _Status.OVERFLOW
    elif not sound_T.all() and on_nonfinite == "skip_step":
        status = _Status.SKIP
    elif not sound_T.all() and (on_nonfinite == "stop" or not usable_T.any()):
        status = _Status.STOP
    else:
        status = _Status.OK
        active_T = usable_T & (norms_T > ZERO_GRADIENT * norms_T[sound_T].mean())
    if active_T.any():
        gram_AA = batch.gram_TT if active_T.all() else batch.gram_TT[np.ix_(active_T, active_T)]
        weights = rule(gram_AA, batch.losses_T[active_T], np.flatnonzero(active_T))
        if weights.alpha_A.shape != (len(gram_AA),) or not np.isfinite(weights.alpha_A).all():
            raise ValueError(f"expected {len(gram_AA)} finite weights, found {weights.alpha_A}")
        slopes_A = gram_AA @ weights.alpha_A
        min_norm = float(weights.alpha_A @ slopes_A)
        gap = float(min_norm - slopes_A.min())
        alpha_T[active_T] = weights.alpha_A
        status = _Status.OK if weights.certified else _Status.UNCERTIFIED
    bits_T = _ACTIVE * active_T + _BROKEN_LOSS * broken_loss_T + _BROKEN_GRADIENT * broken_gradient_T
    return np.concatenate([[status, min_norm, gap], alpha_T, batch.losses_T, bits_T, batch.broken_W])


def _read(verdict: np.ndarray, counts_T: np.ndarray, gram_TT: np.ndarray | None) -> Balance:
    (status, min_norm, gap), of_tasks = verdict[:3], verdict[3:]
    alpha_T, losses_T, bits_T = of_tasks[: 3 * len(counts_T)].reshape(3, -1)
    bits_T = bits_T.astype(int)
    broken: Broken | None = None
    if (bits_T & (_BROKEN_LOSS | _BROKEN_GRADIENT)).any():
        ranks = np.flatnonzero(of_tasks[3 * len(counts_T) :])
        broken = Broken((bits_T & _BROKEN_LOSS) > 0, (bits_T & _BROKEN_GRADIENT) > 0, tuple(ranks.tolist()))
    return Balance(
        alpha_T=alpha_T,
        min_norm=float(min_norm),
        gap=float(gap),
        certified=status != _Status.UNCERTIFIED,
        active_T=(bits_T & _ACTIVE) > 0,
        counts_T=counts_T,
        losses_T=losses_T,
        broken=broken,
        overflow=status == _Status.OVERFLOW,
        gram_TT=None if broken else gram_TT,
    )
