"""The library's face: `split` the representation, `total` the losses, call backward once, read α.

Shapes: T tasks, B samples, C outputs a task, D representation width.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.balance.exchange import Balance, Ranks, exchange
from trainer.balance.factored import stacked_linear
from trainer.balance.gram import gram
from trainer.balance.parameters import task_gradients
from trainer.balance.split import Weigh, fan_out
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

    Heads of equal shape are one stacked module whose first layer is `balancer.linear(z, weight_TCD, bias_TC)`, instead
    of `split`: no task then has a gradient of the size of z, so thousands of tasks fit.

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
        return fan_out(z, len(self.names), self._begin())

    def linear(self, z_BD: Tensor, weight_TCD: Tensor, bias_TC: Tensor | None = None) -> Tensor:
        """Apply the first linear layer of T stacked heads to z, in place of `split`.

        Args:
            z_BD: the representation of this rank's samples.
            weight_TCD: one C x D matrix a task.
            bias_TC: one bias a task and output, or None.

        Returns:
            (B, T, C): task t's C outputs. They must reach the loss of task t alone.

        Raises:
            ValueError: the shapes do not fit one another or the number of tasks.
        """
        z_shape, weight_shape = tuple(z_BD.shape), tuple(weight_TCD.shape)
        fits = len(z_shape) == 2 and len(weight_shape) == 3 and weight_shape[::2] == (len(self.names), z_shape[1])
        if not fits:
            raise ValueError(
                f"linear() takes z (B, D) and weights (T, C, D) with T = {len(self.names)}; found {z_shape} and "
                f"{weight_shape}. For a z or heads of another shape, call split()"
            )
        return stacked_linear(z_BD, weight_TCD, bias_TC, self._begin())

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
        means_T, counts_T = self._global_means(sums, counts)
        self._pending.losses_T = means_T.detach().double()
        self._pending.counts_T = counts_T
        return self._ranks.size * means_T.sum()

    def parameter_gradients(
        self,
        sums: Tensor | Sequence[Tensor],
        counts: Tensor | Sequence[Tensor],
        shared: Sequence[nn.Parameter],
    ) -> Tensor:
        """Each task's gradient with respect to the parameters `shared`, (T, P), summed over the ranks. T backwards.

        The forward behind `sums` is that of the bare module, without `split` and without a data-parallel wrapper.
        """
        means_T, _ = self._global_means(sums, counts)
        return task_gradients(means_T, shared, self._ranks)

    def fill_gradients(
        self,
        sums: Tensor | Sequence[Tensor],
        counts: Tensor | Sequence[Tensor],
        shared: Sequence[nn.Parameter],
        own: Sequence[nn.Parameter],
    ) -> None:
        """MGDA itself (Désidéri 2012), in the space of the shared parameters: T backwards, T x P numbers on the wire.

        Fills every `.grad` and takes the place of `total(...).backward()`, for comparison with the bound that this
        class exists for. The forward is that of the bare module, without `split` and without a data-parallel wrapper:
        the gradients that it leaves are those of the whole batch.

        Args:
            sums: (T,) as `total` takes them.
            counts: (T,) as `total` takes them.
            shared: the encoder's parameters, which get Σ α_t ∂L_t/∂θ.
            own: the heads' parameters, which get their own unweighted gradient.
        """
        means_T, counts_T = self._global_means(sums, counts)
        gradients_TP = task_gradients(means_T, shared, self._ranks)
        own_gradients = torch.autograd.grad(means_T.sum(), list(own))
        gram_TT = gram(gradients_TP)
        if self._ranks.rank > 0:
            gram_TT.zero_()  # Every rank holds the whole batch's matrix already, and the exchange adds them up.
        self.last = exchange(
            gram_TT, means_T.detach().double(), counts_T, rule=self.weighting, ranks=self._ranks, names=self.names
        )
        combined = (self.alpha.to(gradients_TP) @ gradients_TP).split([parameter.numel() for parameter in shared])
        for parameter, gradient_P in zip(shared, combined, strict=True):
            parameter.grad = gradient_P.view_as(parameter)
        for parameter, gradient in zip(own, own_gradients, strict=True):
            parameter.grad = self._ranks.sum(gradient).to(gradient.device)

    def _global_means(
        self, sums: Tensor | Sequence[Tensor], counts: Tensor | Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """This rank's part of the mean losses over all ranks, and the labelled samples over all ranks. Collective."""
        sums_T = sums if isinstance(sums, Tensor) else torch.stack(list(sums))
        counts_T = torch.as_tensor(counts, dtype=torch.float64, device=sums_T.device)
        expected = (len(self.names),)
        if sums_T.shape != expected or counts_T.shape != expected:
            found = f"{tuple(sums_T.shape)} sums and {tuple(counts_T.shape)} counts"
            raise ValueError(f"expected one loss sum and one count a task, {expected}; found {found}")
        counts_T = self._ranks.sum(counts_T).to(sums_T.device)
        return sums_T / counts_T.clamp(min=1).to(sums_T.dtype), counts_T

    def _begin(self) -> Weigh:
        """Start a step. Returns what its backward calls."""
        pending = self._pending = _Pending()
        return lambda gram_TT: self._weigh(gram_TT, pending)

    def _weigh(self, gram_TT: Tensor, pending: "_Pending") -> Tensor:
        """Run inside backward, on every rank: this rank's Gram matrix of all tasks' gradients -> α."""
        if pending.losses_T is None or pending.counts_T is None:
            raise RuntimeError("backward() came before balancer.total(sums, counts): call backward on what it returns")
        # The last step's Gram matrix makes room for this one's: each takes 800 MB for 10,000 tasks.
        self.last = None
        # total() multiplied by W for the wrapper's average; the Gram matrix is that of the mean losses themselves.
        gram_TT /= self._ranks.size**2
        self.last = exchange(
            gram_TT, pending.losses_T, pending.counts_T, rule=self.weighting, ranks=self._ranks, names=self.names
        )
        return self.alpha


class _Pending:
    """What `total` knows and the backward of the same step needs."""

    losses_T: Tensor | None = None
    counts_T: Tensor | None = None
