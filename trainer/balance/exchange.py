"""The step's one exchange: pack -> reduce to rank 0 -> solve there -> broadcast status and α.

z is rank-local, so the Gram matrix of the whole batch is the plain sum of the ranks' Gram matrices: T(T+1)/2 + T
numbers travel, whatever the batch, the representation and the model weigh. Every rank sends and receives the same two
messages in every step, and every rank leaves with the same α or with the same error.

Shapes: T tasks, A active tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from trainer.balance.weightings import Weighting

ZERO_GRADIENT = 1e-20
"""A task is inactive where its squared gradient norm is below this fraction of the mean over tasks: left in, the
min-norm point would be its zero gradient and the encoder would silently stop."""


class BalanceError(RuntimeError):
    """No α could be found in this step. Raised on every rank with the same words."""


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
        active_T: bool, the tasks with labels and a non-zero gradient in this step, on any rank.
        counts_T: labelled samples of each task over all ranks.
        losses_T: mean loss of each task over all ranks.
        gram_TT: Gram matrix of the gradients of the mean losses; None except on rank 0.
    """

    alpha_T: np.ndarray
    min_norm: float
    gap: float
    certified: bool
    active_T: np.ndarray
    counts_T: np.ndarray
    losses_T: np.ndarray
    gram_TT: np.ndarray | None = None


class _Status(IntEnum):
    OK = 0
    UNCERTIFIED = 1
    NON_FINITE = 2
    FAILED = 3


@dataclass(frozen=True)
class Ranks:
    """The processes that share a batch: a torch.distributed group, or this process alone."""

    group: dist.ProcessGroup | None = None

    @property
    def size(self) -> int:
        """Number of ranks."""
        return dist.get_world_size(self.group) if dist.is_initialized() else 1

    @property
    def rank(self) -> int:
        """This process's rank in the group."""
        return dist.get_rank(self.group) if dist.is_initialized() else 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the ranks, on every rank."""
        if self.size > 1:
            values = self._to_wire(values)
            dist.all_reduce(values, group=self.group)
        return values

    def sum_to_first(self, values: Tensor) -> Tensor:
        """Sum over the ranks, on rank 0; what other ranks get back is unspecified."""
        if self.size > 1:
            values = self._to_wire(values)
            dist.reduce(values, group_dst=0, group=self.group)
        return values

    def from_first(self, values: Tensor) -> Tensor:
        """Rank 0's values, on every rank."""
        if self.size > 1:
            values = self._to_wire(values)
            dist.broadcast(values, group_src=0, group=self.group)
        return values

    def gather(self, values: Tensor) -> list[Tensor]:
        """The values of every rank, in rank order, on every rank."""
        if self.size == 1:
            return [values]
        values = self._to_wire(values)
        gathered = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(gathered, values, group=self.group)
        return gathered

    def text_from_first(self, text: str) -> str:
        """Rank 0's text, on every rank."""
        box = [text]
        if self.size > 1:
            dist.broadcast_object_list(box, group_src=0, group=self.group)
        return box[0]

    def _to_wire(self, values: Tensor) -> Tensor:
        """A copy where the group's backend can read it: the collectives above write into what they are given."""
        on_gpu = dist.get_backend(self.group) == dist.Backend.NCCL
        return values.clone() if values.is_cuda == on_gpu else values.to("cuda" if on_gpu else "cpu")


def exchange(
    gram_TT: Tensor, losses_T: Tensor, counts_T: Tensor, *, rule: Weighting, ranks: Ranks, names: Sequence[str]
) -> Balance:
    """Turn every rank's share of the Gram matrix into one α, the same on all ranks.

    Args:
        gram_TT: float64 Gram matrix of this rank's part of the gradients of the global mean losses.
        losses_T: this rank's part of the global mean losses: they sum to them over the ranks.
        counts_T: labelled samples a task over all ranks, already global.
        rule: called on rank 0 only.
        ranks: the processes that share the batch.
        names: the tasks' names, for the error messages.

    Raises:
        BalanceError: a loss or gradient is not finite on some rank, or the rule failed on rank 0. The collectives
            match on all ranks in both cases: nobody is left waiting.
    """
    num_tasks = len(counts_T)
    counts = counts_T.cpu().numpy()
    reduced_TT, means_T = _reduce(gram_TT, losses_T, ranks)
    verdict = np.zeros(3 + 3 * num_tasks)
    found: Balance | None = None
    failure = ""
    if ranks.rank == 0:
        try:
            status, found = _decide(reduced_TT, means_T, counts, rule)
        except Exception as error:  # Whatever happened here, the other ranks wait for the broadcast.
            status, failure = _Status.FAILED, f"{type(error).__name__}: {error}"
        verdict[0] = status
        if found is not None:
            verdict[1:] = [found.min_norm, found.gap, *found.alpha_T, *found.losses_T, *found.active_T]
    verdict = ranks.from_first(torch.from_numpy(verdict).to(gram_TT.device)).cpu().numpy()
    status = _Status(int(verdict[0]))
    if status is _Status.NON_FINITE:
        raise BalanceError(_name_non_finite(gram_TT, losses_T, ranks, names))
    if status is _Status.FAILED:
        raise BalanceError(f"the weighting failed on rank 0: {ranks.text_from_first(failure)}")
    alpha_T, means_T, active_T = verdict[3:].reshape(3, num_tasks)
    return Balance(
        alpha_T=alpha_T,
        min_norm=float(verdict[1]),
        gap=float(verdict[2]),
        certified=status is _Status.OK,
        active_T=active_T.astype(bool),
        counts_T=counts,
        losses_T=means_T,
        gram_TT=found.gram_TT if found is not None else None,
    )


def message_bytes(num_tasks: int) -> int:
    """Bytes that one rank sends or receives a step for α: the counts, the packed Gram matrix, the verdict; float64."""
    return 8 * (num_tasks + num_tasks * (num_tasks + 1) // 2 + num_tasks + 3 + 3 * num_tasks)


def _reduce(gram_TT: Tensor, losses_T: Tensor, ranks: Ranks) -> tuple[np.ndarray, np.ndarray]:
    """Gram matrix and losses of the whole batch, on rank 0; elsewhere unspecified. Alone, nothing is copied."""
    if ranks.size == 1:
        return gram_TT.cpu().numpy(), losses_T.cpu().numpy()
    return _unpack(ranks.sum_to_first(_pack(gram_TT, losses_T)).cpu().numpy(), len(losses_T))


def _pack(gram_TT: Tensor, losses_T: Tensor) -> Tensor:
    return torch.cat([row_T[task:] for task, row_T in enumerate(gram_TT)] + [losses_T.to(gram_TT)])


def _unpack(message: np.ndarray, num_tasks: int) -> tuple[np.ndarray, np.ndarray]:
    gram_TT = np.empty((num_tasks, num_tasks))
    end = 0
    for task in range(num_tasks):
        start, end = end, end + num_tasks - task
        gram_TT[task, task:] = gram_TT[task:, task] = message[start:end]
    return gram_TT, message[end:]


def _decide(
    gram_TT: np.ndarray, losses_T: np.ndarray, counts_T: np.ndarray, rule: Weighting
) -> tuple[_Status, Balance | None]:
    """Rank 0's part, on the whole batch's numbers."""
    # NaN and infinity survive the sum over ranks, so they need no flag of their own.
    if not (np.isfinite(gram_TT).all() and np.isfinite(losses_T).all()):
        return _Status.NON_FINITE, None
    norms_T = gram_TT.diagonal()
    active_T = (counts_T > 0) & (norms_T > ZERO_GRADIENT * norms_T.mean())
    alpha_T = np.zeros(len(counts_T))
    tasks_A = np.flatnonzero(active_T)
    min_norm = gap = 0.0
    certified = True
    if tasks_A.size:
        gram_AA = gram_TT if active_T.all() else gram_TT[np.ix_(tasks_A, tasks_A)]
        weights = rule(gram_AA, losses_T[tasks_A], tasks_A)
        if weights.alpha_A.shape != tasks_A.shape or not np.isfinite(weights.alpha_A).all():
            raise ValueError(f"expected {tasks_A.size} finite weights, found {weights.alpha_A}")
        slopes_A = gram_AA @ weights.alpha_A
        alpha_T[tasks_A] = weights.alpha_A
        min_norm = float(weights.alpha_A @ slopes_A)
        gap = float(min_norm - slopes_A.min())
        certified = weights.certified
    status = _Status.OK if certified else _Status.UNCERTIFIED
    return status, Balance(alpha_T, min_norm, gap, certified, active_T, counts_T, losses_T, gram_TT)


def _name_non_finite(gram_TT: Tensor, losses_T: Tensor, ranks: Ranks, names: Sequence[str]) -> str:
    """Say which task is not finite on which rank. Collective; the words are the same on every rank."""
    broken_T = (~losses_T.isfinite()).double() + 2 * (~gram_TT.diagonal().isfinite()).double()
    what = {1: "loss", 2: "gradient", 3: "loss and gradient"}
    found = [
        f"{what[int(code)]} of task '{name}' on rank {rank}"
        for rank, codes_T in enumerate(ranks.gather(broken_T))
        for name, code in zip(names, codes_T.tolist(), strict=True)
        if code
    ]
    return "not finite: " + ", ".join(found or ["the Gram matrix, by overflow of float64"])
