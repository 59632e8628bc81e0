"""The library's face: `split` the representation, `total` the losses, call backward once, read α.

Shapes: T tasks, B samples, D representation width, N = B * D.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.balance import split as node
from trainer.balance.exchange import Balance, Ranks, exchange
from trainer.balance.weightings import MinNormWeighting, Weighting


class Balancer:
    """Exact Pareto weights for T tasks on one shared representation, inside one ordinary backward.

    MGDA-UB (Sener & Koltun 2018, arXiv 1810.04650, Algorithm 2 with equation 5): α minimises the norm of the combined
    gradient with respect to the representation z of the whole batch, over all ranks. The encoder receives Σ α_t g_t;
    every head keeps its own unweighted gradient.

        balancer = Balancer(tasks=40)
        views = balancer.split(encoder(x))                 # T views of z, no copy
        outputs = [head(view) for head, view in zip(heads, views)]
        balancer.total(sums, counts).backward()            # sums_T: summed losses, counts_T: labelled samples
        balancer.alpha                                     # the weights of this step

    Every rank must run every head in every step, also heads without labels: a sum over no samples is 0 and does it.

    Args:
        tasks: the number of tasks, or their names (used in error messages).
        weighting: the rule that turns the Gram matrix into α; the exact min-norm point by default.
        group: the process group that shares the batch; None is the default group, or this process alone where
            torch.distributed is not initialised. The data-parallel wrapper must AVERAGE gradients over the same ranks,
            as DDP, FSDP and DeepSpeed ZeRO do.

    Attributes:
        last: what the last backward's exchange found (`Balance`); None before the first one.
    """

    def __init__(
        self,
        tasks: int | Sequence[str],
        weighting: Weighting | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.names = [f"{task}" for task in range(tasks)] if isinstance(tasks, int) else list(tasks)
        if not self.names:
            raise ValueError("a Balancer needs at least one task, found none")
        self.weighting: Weighting = weighting or MinNormWeighting()
        self.last: Balance | None = None
        self._ranks = Ranks(group)
        self._pending = _Pending()

    @property
    def alpha(self) -> Tensor:
        """α of the last backward: float64, (T,), on the CPU, the same bits on every rank.

        Raises:
            RuntimeError: there was no backward yet.
        """
        if self.last is None:
            raise RuntimeError("there is no α yet: call split, total and backward first")
        return torch.from_numpy(self.last.alpha_T.copy())

    def split(self, z: Tensor) -> tuple[Tensor, ...]:
        """Give each task its view of z, a tensor of any shape whose gradient belongs to this rank's samples alone."""
        pending = self._pending = _Pending()
        return node.split(z, len(self.names), lambda gradients_TN: self._combine(gradients_TN, pending))

    def total(self, sums: Tensor | Sequence[Tensor], counts: Tensor | Sequence[Tensor]) -> Tensor:
        """Turn this rank's loss sums into the scalar to call `backward` on. Collective: one T-number all-reduce.

        The scalar is W Σ_t S_t / N_t with N_t the labelled samples of task t over all W ranks, so that the wrapper's
        average over ranks is the gradient of the mean loss over the whole batch, ragged or not. A task without a
        label on any rank contributes 0.

        Args:
            sums: (T,) each task's loss SUMMED over this rank's labelled samples.
            counts: (T,) the number of those samples.

        Raises:
            ValueError: not one sum and one count for each task.
        """
        sums_T = sums if isinstance(sums, Tensor) else torch.stack(list(sums))
        counts_T = torch.as_tensor(counts, dtype=torch.float64, device=sums_T.device)
        expected = (len(self.names),)
        if sums_T.shape != expected or counts_T.shape != expected:
            found = f"{tuple(sums_T.shape)} sums and {tuple(counts_T.shape)} counts"
            raise ValueError(f"total() takes one loss sum and one count a task, {expected}; found {found}")
        counts_T = self._ranks.sum(counts_T).to(sums_T.device)
        means_T = sums_T / counts_T.clamp(min=1).to(sums_T.dtype)
        self._pending.losses_T = means_T.detach().double()
        self._pending.counts_T = counts_T
        return self._ranks.size * means_T.sum()

    def _combine(self, gradients_TN: Tensor, pending: "_Pending") -> Tensor:
        """Run inside backward, on every rank: all tasks' gradients -> the encoder's."""
        if pending.losses_T is None or pending.counts_T is None:
            raise RuntimeError("backward() came before balancer.total(sums, counts): call backward on what it returns")
        # total() multiplied by W for the wrapper's average; the Gram matrix is that of the mean losses themselves.
        gram_TT = node.gram(gradients_TN) / self._ranks.size**2
        self.last = exchange(
            gram_TT, pending.losses_T, pending.counts_T, rule=self.weighting, ranks=self._ranks, names=self.names
        )
        return self.alpha.to(gradients_TN) @ gradients_TN


class _Pending:
    """What `total` knows and the backward of the same step needs."""

    losses_T: Tensor | None = None
    counts_T: Tensor | None = None
