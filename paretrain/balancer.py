"""The main class: `split` the representation, `total` the losses, call backward once, read `alpha`.

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
from paretrain.losses import Counts, Sums, Totals, as_tensors, means
from paretrain.nonfinite import OnNonFinite, zero_gradients
from paretrain.parameters import task_gradients
from paretrain.ranks import Ranks
from paretrain.rules import MinNormWeighting, Weighting
from paretrain.solve import solve_step
from paretrain.split import Weighed, fan_out
from paretrain.stacked import stacked_linear
from paretrain.window import Window


class Balancer:
    """Compute exact Pareto weights for T tasks on one shared representation, inside one ordinary backward.

    This is MGDA-UB (Sener & Koltun 2018, arXiv 1810.04650, Algorithm 2 with equation 5): α minimises the norm of the
    combined gradient Σ α_t g_t with respect to the representation z of the whole batch, over all ranks. The encoder
    receives that gradient; every head keeps its own unweighted gradient.

        balancer = Balancer(tasks=40)
        views = balancer.split(encoder(x))                 # T views of z, no copy
        outputs = [head(view) for head, view in zip(heads, views)]
        balancer.total(sums, counts).backward()            # sums_T: summed losses, counts_T: labelled samples
        balancer.alpha                                     # the weights of this step

    Heads of equal shape can be one stacked module whose first layer is `balancer.linear(z, weight_TCD, bias_TC)`, in
    place of `split`. No task then needs a gradient of the size of z, so thousands of tasks fit.

    Every rank must run every head in every step, also a head without labels: its loss is then 0, a sum over no samples.

    Args:
        tasks: the number of tasks, or their names (used in error messages).
        weighting: the rule that turns the Gram matrix into α; the exact min-norm point by default.
        group: the process group that shares the batch. None means the default group, or this process alone if
            torch.distributed is not initialised. The data-parallel wrapper must AVERAGE gradients over the same ranks,
            as DDP, FSDP and DeepSpeed ZeRO do.
        on_nonfinite: what to do if a task's loss, or its gradient with respect to z, is NaN or infinite on any rank.
            Every rank does the same, and `last.broken` says what was found.
            stop: the backward raises NonFiniteError, with the same message on every rank.
            skip_step: the encoder's gradient is zero, the rule's state is unchanged and `last.active_T` is all False;
            do not step the optimizer.
            drop_task: α and the gradients of the encoder and the other heads are those of a batch without the broken
            tasks. Call `zero_broken(heads)` after the backward, since the heads of the broken tasks have NaN gradients.
            If no other task has a label, the backward raises NonFiniteError.

    Attributes:
        names: names of the tasks; their numbers if only a number of tasks was given.
        weighting: the rule. Save and restore its state with `weighting.state_dict()` and `weighting.load_state_dict()`.
        last: the `Balance` of the last backward; None before the first one.

    Raises:
        ValueError: there is no task, or `on_nonfinite` is not one of the values above.
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
        """α of the last backward: float64, (T,), on the CPU, with the same bits on every rank.

        Raises:
            RuntimeError: there was no backward yet.
        """
        if self.last is None:
            raise RuntimeError("there is no α yet: call split, total and backward first")
        return torch.from_numpy(self.last.alpha_T.copy())

    def split(self, z: Tensor) -> tuple[Tensor, ...]:
        """Give each task its own view of z, without a copy.

        Args:
            z: the representation of this rank's samples, of any shape. No entry may depend on samples of other ranks.

        Returns:
            T views of z. View t must reach the loss of task t alone.
        """
        return fan_out(z, len(self.names), self._begin())

    def linear(self, z_BD: Tensor, weight_TCD: Tensor, bias_TC: Tensor | None = None) -> Tensor:
        """Apply the first linear layer of T stacked heads to z, in place of `split`.

        Args:
            z_BD: the representation of this rank's samples.
            weight_TCD: one C x D matrix per task.
            bias_TC: one bias per task and output, or None.

        Returns:
            (B, T, C), the C outputs of each task. Those of task t must reach the loss of task t alone.

        Raises:
            ValueError: the shapes do not match each other or the number of tasks.
        """
        z_shape, weight_shape = tuple(z_BD.shape), tuple(weight_TCD.shape)
        fits = len(z_shape) == 2 and len(weight_shape) == 3 and weight_shape[::2] == (len(self.names), z_shape[1])
        if not fits:
            raise ValueError(
                f"linear() takes z (B, D) and weights (T, C, D) with T = {len(self.names)}; found {z_shape} and "
                f"{weight_shape}. For a z or heads of another shape, call split()"
            )
        return stacked_linear(z_BD, weight_TCD, bias_TC, self._begin())

    def total(self, sums: Sums, counts: Counts, gradient_scale: float = 1.0) -> Tensor:
        """Turn this rank's loss sums into the scalar to call `backward` on. Collective: one all-reduce of T numbers.

        The scalar is W Σ_t S_t / N_t, where N_t is the number of labelled samples of task t over all W ranks. The
        wrapper's average over ranks is then the gradient of the mean loss over the whole batch, also if the ranks have
        different numbers of samples. A task without a label on any rank contributes 0.

        The backward of the scalar finds α. It is collective, and raises on every rank alike:
        NonFiniteError if something is not finite and `on_nonfinite` says to stop; BalanceError if the rule failed;
        RuntimeError if `split` ran again inside the backward.

        Args:
            sums: (T,) each task's loss SUMMED over this rank's labelled samples.
            counts: (T,) the number of those samples.
            gradient_scale: the factor by which the caller multiplies the scalar before the backward, the same on all
                ranks, such as `scaler.get_scale()` of a GradScaler. `last` describes the unscaled gradients.
                If it is above 1, a gradient that is not finite while all losses are finite counts as an overflow for
                any `on_nonfinite`: the encoder gets NaN on every rank, so that every scaler skips the step and backs
                off.

        Raises:
            ValueError: not one sum and one count for each task, or a scale that is not positive and finite.
        """
        if not 0 < gradient_scale < float("inf"):
            raise ValueError(f"gradient_scale must be positive and finite, found {gradient_scale}")
        means_T, counts_T = self._global_means(sums, counts)
        self._pending.totals = Totals(means_T.detach().double(), counts_T, gradient_scale)
        return self._ranks.size * means_T.sum()

    def window(self) -> Window:
        """Start a step of several micro-batches whose α is that of one batch of all their samples; see `Window`."""
        return Window(len(self.names), self._ranks, self._find)

    def zero_broken(self, heads: Sequence[nn.Module] | nn.Module) -> None:
        """Zero the gradients of the heads of broken tasks. With `drop_task`, call it after the backward on every rank.

        Weight decay and momentum still move the parameters of these heads.

        Args:
            heads: a list of one module per task, in the order of the tasks; or a module made of such lists and of
                parameters with one row per task, as stacked heads have.

        Raises:
            ValueError: `heads` has another form.
            RuntimeError: a parameter has no `.grad`: there was no backward, or the wrapper does not expose gradients.
        """
        if self.last is not None and self.last.broken is not None:
            zero_gradients(heads, self.last.broken.tasks, len(self.names))

    def parameter_gradients(
        self,
        sums: Sums,
        counts: Counts,
        shared: Sequence[nn.Parameter],
    ) -> Tensor:
        """Return each task's gradient with respect to `shared`, summed over the ranks. Collective; takes T backwards.

        Compute `sums` with the bare module, without `split` and without a data-parallel wrapper.

        Args:
            sums: (T,) as for `total`.
            counts: (T,) as for `total`.
            shared: the parameters, P numbers together.

        Returns:
            (T, P), in the precision of the parameters; equal on every rank.

        Raises:
            ValueError: not one sum and one count for each task.
        """
        means_T, _ = self._global_means(sums, counts)
        return task_gradients(means_T, shared, self._ranks)

    def fill_gradients(
        self,
        sums: Sums,
        counts: Counts,
        shared: Sequence[nn.Parameter],
        own: Sequence[nn.Parameter],
    ) -> None:
        """Fill every `.grad` by MGDA in the space of the shared parameters (Désidéri 2012; Sener & Koltun 2018, eq. 3).

        Call it instead of `total(...).backward()`, to compare MGDA-UB with the problem that it bounds. It takes T
        backwards and communicates T x P numbers. Compute `sums` with the bare module, without `split` and without a
        data-parallel wrapper: the gradients that it leaves are those of the whole batch. Collective.

        Args:
            sums: (T,) as for `total`.
            counts: (T,) as for `total`.
            shared: the encoder's parameters, which get Σ α_t ∂L_t/∂θ.
            own: the heads' parameters, which get their own unweighted gradient.

        Raises:
            ValueError: not one sum and one count for each task.
            NonFiniteError: as in the backward of `total`. `drop_task` stops too: here the NaN of one task
                spreads to the gradients of all.
        """
        means_T, counts_T = self._global_means(sums, counts)
        gradients_TP = task_gradients(means_T, shared, self._ranks)
        own_gradients = torch.autograd.grad(means_T.sum(), list(own))
        # Every rank already holds the Gram matrix of the whole batch, and the exchange sums over the ranks.
        gram_TT = gram(gradients_TP)
        gram_TT /= self._ranks.size
        alpha_T, dropped = self._find(gram_TT, Totals(means_T.detach().double(), counts_T))
        if dropped:
            gradients_TP[dropped] = 0
        combined_P = alpha_T.to(gradients_TP) @ gradients_TP
        combined = torch.split(combined_P, [parameter.numel() for parameter in shared])
        for parameter, gradient_P in zip(shared, combined, strict=True):
            parameter.grad = gradient_P.view_as(parameter)
        for parameter, gradient in zip(own, own_gradients, strict=True):
            parameter.grad = self._ranks.sum(gradient).to(gradient.device)

    def _global_means(self, sums: Sums, counts: Counts) -> tuple[Tensor, Tensor]:
        """Return this rank's part of the global mean losses, and the labelled samples over all ranks. Collective."""
        sums_T, counts_T = as_tensors(sums, counts, len(self.names))
        counts_T = self._ranks.sum(counts_T).to(sums_T.device)
        return means(sums_T, counts_T), counts_T

    def _begin(self) -> "_Step":
        self._pending = _Step(self._ranks, self._find)
        return self._pending

    def _find(self, gram_TT: Tensor, totals: Totals) -> Weighed:
        """Turn this rank's Gram matrix, of the gradients of the global mean losses, into α. Collective.

        Overwrites `gram_TT`. Every rank calls it once per step, inside the backward.
        """
        # Free the last Gram matrix before this one is unpacked: for 10,000 tasks each takes 800 MB.
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
    """One step from its `split` to its backward. Implements `split.Weigher`."""

    found: Weighed | None = None

    def __init__(self, ranks: Ranks, find: Callable[[Tensor, Totals], Weighed]) -> None:
        self.totals: Totals | None = None
        self._ranks = ranks
        self._find = find

    def receive(self, gram_TT: Tensor) -> Weighed:
        """Rescale the Gram matrix to that of the mean losses' gradients, and find α."""
        if self.totals is None:
            raise RuntimeError(
                "backward() came before balancer.total(sums, counts): call backward on what total returns. If you did, "
                "split ran again inside the backward: keep it out of reentrant checkpointing (use_reentrant=False)"
            )
        # The caller scaled the gradients, and total() multiplied them by W for the wrapper's average.
        gram_TT /= (self._ranks.size * self.totals.gradient_scale) ** 2
        return self._find(gram_TT, self.totals)
