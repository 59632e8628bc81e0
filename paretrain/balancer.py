"""The library's face: `split` the representation, `total` the losses, call backward once, read α.

Shapes: T tasks, B samples, C outputs a task, D representation width.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from paretrain.balance import Balance, balance_of
from paretrain.exchange import exchange
from paretrain.gram import gram
from paretrain.losses import Numbers, Totals, as_tensors, means
from paretrain.nonfinite import OnNonFinite, zero_gradients
from paretrain.parameters import task_gradients
from paretrain.ranks import Ranks
from paretrain.rules import MinNormWeighting, Weighting
from paretrain.solve import solve_step
from paretrain.split import Weighed, fan_out
from paretrain.stacked import stacked_linear
from paretrain.window import Window


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

    Every rank must run every head in every step, also one without labels: its loss is then a sum over no samples, 0.

    Args:
        tasks: the number of tasks, or their names (used in error messages).
        weighting: the rule that turns the Gram matrix into α; the exact min-norm point by default.
        group: the process group that shares the batch; None is the default group, or this process alone where
            torch.distributed is not initialised. The data-parallel wrapper must AVERAGE gradients over the same ranks,
            as DDP, FSDP and DeepSpeed ZeRO do.
        on_nonfinite: what happens where a task's loss, or its gradient with respect to z, is NaN or infinite on any
            rank. Every rank does the same; `last.broken` says what was found.
            stop: the backward raises NonFiniteError, with the same message on every rank.
            skip_step: the encoder gets no gradient, the rule's state stays as it is and `last.active_T` is all False:
            do not step the optimizer.
            drop_task: α, the encoder's and the other heads' gradients are those of a batch without the broken tasks.
            Call `zero_broken(heads)` after the backward, since the gradients of their own heads hold NaN. Stops where
            no other task has a label.

    Attributes:
        last: what the last backward's exchange found (`Balance`); None before the first one.
    """

    def __init__(
        self,
        tasks: int | Sequence[str],
        weighting: Weighting | None = None,
        group: dist.ProcessGroup | None = None,
        on_nonfinite: OnNonFinite = "stop",
    ) -> None:
        self.names = [f"{task}" for task in range(tasks)] if isinstance(tasks, int) else list(tasks)
        if not self.names:
            raise ValueError("a Balancer needs at least one task, found none")
        if on_nonfinite not in get_args(OnNonFinite):
            raise ValueError(f"on_nonfinite must be one of {', '.join(get_args(OnNonFinite))}, found '{on_nonfinite}'")
        self.weighting: Weighting = MinNormWeighting() if weighting is None else weighting
        self.last: Balance | None = None
        self._ranks = Ranks(group)
        self._on_nonfinite = on_nonfinite
        self._pending = _Step(self._ranks, self._find)

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

    def total(self, sums: Numbers, counts: Numbers, gradient_scale: float = 1.0) -> Tensor:
        """Turn this rank's loss sums into the scalar to call `backward` on. Collective: one T-number all-reduce.

        The scalar is W Σ_t S_t / N_t with N_t the labelled samples of task t over all W ranks, so that the wrapper's
        average over ranks is the gradient of the mean loss over the whole batch, ragged or not. A task without a
        label on any rank contributes 0.

        Args:
            sums: (T,) each task's loss SUMMED over this rank's labelled samples.
            counts: (T,) the number of those samples.
            gradient_scale: by what the caller multiplies the scalar before the backward, the same on all ranks:
                `scaler.get_scale()` of a GradScaler. `last` describes the gradients without it.
                Above 1, a gradient that is not finite while all losses are is an overflow, whatever `on_nonfinite`
                says: every rank's encoder gets NaN, so that every rank's scaler skips the step and backs off.

        Raises:
            ValueError: not one sum and one count for each task, or a scale that is not positive.
        """
        if not 0 < gradient_scale < float("inf"):
            raise ValueError(f"gradient_scale must be positive and finite, found {gradient_scale}")
        means_T, counts_T = self._global_means(sums, counts)
        self._pending.totals = Totals(means_T.detach().double(), counts_T, gradient_scale)
        return self._ranks.size * means_T.sum()

    def window(self) -> Window:
        """Start a step of several micro-batches whose α is that of one batch of all their samples."""
        return Window(len(self.names), self._ranks, self._find)

    def zero_broken(self, heads: Sequence[nn.Module] | nn.Module) -> None:
        """Zero the gradients of the broken tasks' own parameters; with `drop_task`, after the backward, on every rank.

        Weight decay and momentum still move these parameters.

        Args:
            heads: a list of one module a task, in the order of the tasks; or a module made of such lists and of
                parameters with a row a task, as stacked heads have.

        Raises:
            ValueError: `heads` is something else.
            RuntimeError: a parameter has no `.grad`: no backward came, or the wrapper keeps the gradients to itself.
        """
        if self.last is not None and self.last.broken is not None:
            zero_gradients(heads, self.last.broken.tasks, len(self.names))

    def parameter_gradients(
        self,
        sums: Numbers,
        counts: Numbers,
        shared: Sequence[nn.Parameter],
    ) -> Tensor:
        """Each task's gradient with respect to the parameters `shared`, (T, P), summed over the ranks. T backwards.

        The forward behind `sums` is that of the bare module, without `split` and without a data-parallel wrapper.
        """
        means_T, _ = self._global_means(sums, counts)
        return task_gradients(means_T, shared, self._ranks)

    def fill_gradients(
        self,
        sums: Numbers,
        counts: Numbers,
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

        Raises:
            NonFiniteError: as in the backward of `total`; `drop_task` stops too, since here NaN of one task reaches the
                gradients of all.
        """
        means_T, counts_T = self._global_means(sums, counts)
        gradients_TP = task_gradients(means_T, shared, self._ranks)
        own_gradients = torch.autograd.grad(means_T.sum(), list(own))
        # Every rank holds the whole batch's matrix already, and the exchange adds them up.
        gram_TT = gram(gradients_TP)
        gram_TT /= self._ranks.size
        alpha_T, dropped = self._find(gram_TT, Totals(means_T.detach().double(), counts_T))
        if dropped:
            gradients_TP[dropped] = 0
        combined = (alpha_T.to(gradients_TP) @ gradients_TP).split([parameter.numel() for parameter in shared])
        for parameter, gradient_P in zip(shared, combined, strict=True):
            parameter.grad = gradient_P.view_as(parameter)
        for parameter, gradient in zip(own, own_gradients, strict=True):
            parameter.grad = self._ranks.sum(gradient).to(gradient.device)

    def _global_means(self, sums: Numbers, counts: Numbers) -> tuple[Tensor, Tensor]:
        """This rank's part of the mean losses over all ranks, and the labelled samples over all ranks. Collective."""
        sums_T, counts_T = as_tensors(sums, counts, len(self.names))
        counts_T = self._ranks.sum(counts_T).to(sums_T.device)
        return means(sums_T, counts_T), counts_T

    def _begin(self) -> "_Step":
        self._pending = _Step(self._ranks, self._find)
        return self._pending

    def _find(self, gram_TT: Tensor, totals: Totals) -> Weighed:
        """Turn this rank's Gram matrix, of the gradients of the global mean losses, into α. Collective.

        Overwrites `gram_TT`. Every rank calls it once a step, inside the backward.
        """
        # Frees the last step's Gram matrix before this one's is unpacked: for 10,000 tasks each takes 800 MB.
        self.last = None
        decide = partial(
            solve_step, rule=self.weighting, on_nonfinite=self._on_nonfinite, scaled=totals.gradient_scale > 1
        )
        verdict, summed_TT = exchange(gram_TT, totals.losses_T, totals.counts_T, self._ranks, decide)
        counts_T = totals.counts_T.cpu().numpy()
        self.last = balance_of(verdict, counts_T, summed_TT, self.names, self._on_nonfinite)
        alpha_T = torch.full_like(self.alpha, torch.nan) if self.last.overflow else self.alpha
        return Weighed(alpha_T, self.last.dropped)


class _Step:
    """One step, from its `split` to its backward. Implements `split.Weigher`."""

    found: Weighed | None = None

    def __init__(self, ranks: Ranks, find: Callable[[Tensor, Totals], Weighed]) -> None:
        self.totals: Totals | None = None
        self._ranks = ranks
        self._find = find

    def receive(self, gram_TT: Tensor) -> Weighed:
        """Rescale the Gram matrix of the gradients that arrived to that of the mean losses, and find α."""
        if self.totals is None:
            raise RuntimeError(
                "backward() came before balancer.total(sums, counts): call backward on what it returns. If you did, "
                "the split ran again inside the backward: keep it out of reentrant checkpointing (use_reentrant=False)"
            )
        # The caller scaled the gradients, and total() multiplied them by W for the wrapper's average.
        gram_TT /= (self._ranks.size * self.totals.gradient_scale) ** 2
        return self._find(gram_TT, self.totals)
