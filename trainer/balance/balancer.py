"""The library's face: `split` the representation, `total` the losses, call backward once, read α.

Shapes: T tasks, B samples, C outputs a task, D representation width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.balance.exchange import Balance, exchange
from trainer.balance.factored import stacked_linear
from trainer.balance.gram import gram
from trainer.balance.losses import Numbers, as_tensors, means
from trainer.balance.nonfinite import OnNonFinite, zero_gradients
from trainer.balance.parameters import task_gradients
from trainer.balance.ranks import Ranks
from trainer.balance.split import Weigh, Weighed, fan_out
from trainer.balance.weightings import MinNormWeighting, Weighting
from trainer.balance.window import Window


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
        on_nonfinite: what happens where a task's loss, or its gradient with respect to z, is NaN or infinite on any
            rank; the same on every rank, and told in `last.broken`.
            stop: the backward raises NonFiniteError, with the same words everywhere.
            skip_step: the encoder gets no gradient, the weighting learns nothing, `last.active_T` is all False: make
            no optimizer step.
            drop_task: α, the encoder's and the other heads' gradients are those of a batch without the broken tasks.
            Call `zero_broken(heads)` after the backward: their own heads' gradients hold NaN until then. Where no
            other task has a label it stops.

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
        self.weighting: Weighting = weighting or MinNormWeighting()
        self.last: Balance | None = None
        self._ranks = Ranks(group)
        self._on_nonfinite = on_nonfinite
        self._pending = _Step()

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
                `scaler.get_scale()` of a GradScaler. What the balancer finds is that of the gradients without it.
                Above 1, a gradient that is not finite while all losses are is an overflow, whatever `on_nonfinite`
                says: every rank's encoder gets NaN, so that every rank's scaler skips the step and backs off. Once it
                has backed off to 1, such a gradient is no overflow any more.

        Raises:
            ValueError: not one sum and one count for each task, or a scale that is not positive.
        """
        if not 0 < gradient_scale < float("inf"):
            raise ValueError(f"gradient_scale must be positive and finite, found {gradient_scale}")
        means_T, counts_T = self._global_means(sums, counts)
        self._pending.totals = _Totals(means_T.detach().double(), counts_T, gradient_scale)
        return self._ranks.size * means_T.sum()

    def window(self) -> Window:
        """Start a step of several micro-batches whose α is that of one batch of all their samples."""
        return Window(len(self.names), self._ranks, lambda gram_TT, *totals: self._exchange(gram_TT, _Totals(*totals)))

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
        alpha_T, left_out = self._exchange(gram_TT, _Totals(means_T.detach().double(), counts_T))
        if left_out:
            gradients_TP[left_out] = 0
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

    def _begin(self) -> Weigh:
        """Start a step. Returns what its backward calls."""
        pending = self._pending = _Step()
        return lambda compute_gram: self._weigh(compute_gram, pending)

    def _weigh(self, compute_gram: Callable[[], Tensor], pending: "_Step") -> Weighed:
        """Run inside backward, on every rank: this rank's Gram matrix of all tasks' gradients -> α."""
        if pending.totals is None:
            raise RuntimeError(
                "backward() came before balancer.total(sums, counts): call backward on what it returns. If you did, "
                "the split ran again inside the backward: keep it out of reentrant checkpointing (use_reentrant=False)"
            )
        gram_TT = compute_gram()
        # The caller scaled the gradients and total() multiplied them by W for the wrapper's average; the Gram matrix is
        # that of the mean losses themselves.
        gram_TT /= (self._ranks.size * pending.totals.gradient_scale) ** 2
        return self._exchange(gram_TT, pending.totals)

    def _exchange(self, gram_TT: Tensor, totals: "_Totals") -> Weighed:
        # The last step's Gram matrix makes room for this one's: each takes 800 MB for 10,000 tasks.
        self.last = None
        self.last = exchange(
            gram_TT,
            totals.losses_T,
            totals.counts_T,
            rule=self.weighting,
            ranks=self._ranks,
            names=self.names,
            on_nonfinite=self._on_nonfinite,
            scaled=totals.gradient_scale > 1,
        )
        if self.last.overflow:
            return Weighed(torch.full_like(self.alpha, torch.nan), [])
        if self.last.broken is None:
            return Weighed(self.alpha, [])
        dropped = self.last.broken.tasks if self.last.active_T.any() else list(range(len(self.names)))
        return Weighed(self.alpha, dropped)


@dataclass(frozen=True)
class _Totals:
    """What `total` was given, over all ranks."""

    losses_T: Tensor
    counts_T: Tensor
    gradient_scale: float = 1.0


class _Step:
    """One step from its `split` to its backward, which may be another's than the last `split`'s."""

    totals: _Totals | None = None
