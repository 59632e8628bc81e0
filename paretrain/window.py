"""The exact α of several micro-batches, as of one batch, in the memory of one micro-batch.

Every sample has its own part of z, so the Gram matrix of a window of micro-batches is the sum of their Gram matrices,
just as that of a batch is the sum over its ranks. The first pass computes the Gram matrix of each micro-batch; the
second back-propagates each with the common α. Nothing of the size of z is kept in between.

Shapes: T tasks, B samples, C outputs a task, D representation width.
"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import overload

import torch
from torch import Tensor

from paretrain.factored import Factored
from paretrain.losses import Counts, Losses, Totals, Values, divisors, means_of, read_losses, refuse_positional
from paretrain.ranks import Ranks
from paretrain.scalar import watched
from paretrain.split import Combine, Weighed, Weigher, fan_out
from paretrain.stacked import stacked_linear
from paretrain.step import Find, num_samples, outside_of_graphs
from paretrain.z import as_tensors

Check = Callable[[Losses, Collection[Weigher], Sequence[Tensor]], Losses]
"""Marks faults of losses; see `wiring.miswired`."""


class Window:
    """The micro-batches of one step. `Balancer.window()` returns one; pass it to the model in place of the balancer.

        window = balancer.window()
        with torch.random.fork_rng():  # both passes then draw the same dropout
            for x, y in micro_batches:
                window.look(**losses(model(x, window), y))
        window.weigh()  # balancer.alpha now holds α
        for x, y in micro_batches:
            window.total(**losses(model(x, window), y)).backward()

    Here `losses` returns a dict with `sums` and `counts`, or `means` and `counts`.

    The first pass detaches z from the encoder: call the bare module in it, since a wrapper such as DDP would wait for a
    backward. BatchNorm uses the statistics of one micro-batch at a time and updates its running statistics in both
    passes.

    The cost is one more forward of the model and one more backward of its heads. With a small ResNet, 10 tasks and 128
    samples in 4 micro-batches on one core, a step took 1.6 times as long as with one batch, 1.4 times as long as with
    four micro-batches with an α each, and 164 MiB instead of the 424 of one batch.

    A framework that divides each micro-batch's loss by their number K, as Accelerate's `accumulate` does, would make
    every gradient K times too small. The backward of the second pass notices it and says so; `window(divided_by=K)`
    makes up for it.

    Args:
        names: of the tasks.
        ranks: the processes that share the batch.
        find: finds α.
        check: see `Check`.
        divided_by: the number by which the caller divides what `total` returns before the backward.

    Attributes:
        found: α after `weigh`, None before it. This class implements `split.Weigher` and `scalar.Watcher`.
        needs_gram: True: only `weigh` knows which tasks have labels, and so whether α is held.
    """

    needs_gram = True

    def __init__(self, names: Sequence[str], ranks: Ranks, find: Find, check: Check, divided_by: int = 1) -> None:
        self.found: Weighed | None = None
        self._names = names
        self._ranks = ranks
        self._find = find
        self._check = check
        self._divided_by = divided_by
        # Sums over this rank's samples during the first pass; `weigh` replaces the counts with the global ones.
        self._gram_TT = self._sums_T = self._counts_T = torch.zeros((), dtype=torch.float64)
        self._faults_FT = torch.zeros((), dtype=torch.float64)
        self._num_micro_batches = 0
        self._num_samples: int | None = None
        self._is_checked = False
        self._gradient_scale = 1.0
        self._leaves: list[Tensor] = []
        self._cut_off: list[Tensor] = []
        self._received_TT: Tensor | None = None

    @overload
    def split(self, z: Tensor) -> tuple[Tensor, ...]: ...

    @overload
    def split(self, z: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], ...]: ...

    @outside_of_graphs
    def split(self, z: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...] | tuple[tuple[Tensor, ...], ...]:
        """Give each task its view of z; see `Balancer.split`."""
        views = fan_out(self._cut(as_tensors(z)), len(self._names), self)
        return tuple(view for (view,) in views) if isinstance(z, Tensor) else views

    @outside_of_graphs
    def linear(self, z_BD: Tensor, weight_TCD: Tensor, bias_TC: Tensor | None = None) -> Tensor:
        """Apply the first layer of stacked heads; see `Balancer.linear`."""
        (z_BD,) = self._cut(as_tensors(z_BD))
        return stacked_linear(z_BD, weight_TCD, bias_TC, self)

    @outside_of_graphs
    def look(
        self,
        *losses: object,
        sums: Values | None = None,
        means: Values | None = None,
        counts: Counts | None = None,
        gradient_scale: float = 1.0,
    ) -> None:
        """Add a micro-batch to the window, in the first pass. No parameter gets a gradient.

        Args:
            *losses: none; see `Balancer.total`.
            sums: as for `Balancer.total`.
            means: as for `Balancer.total`.
            counts: as for `Balancer.total`.
            gradient_scale: the factor by which to multiply the losses in this pass, for gradients in float16: such as
                `scaler.get_scale()` of a GradScaler. The same for every micro-batch.

        Raises:
            TypeError: as `Balancer.total`.
            ValueError: not one loss and one count for each task, or a scale that is not positive and finite.
            RuntimeError: the model did not call `split` or `linear`, or `weigh` was called already.
        """
        refuse_positional(losses)
        if not 0 < gradient_scale < float("inf"):
            raise ValueError(f"gradient_scale must be positive and finite, found {gradient_scale}")
        if not self._leaves or self.found is not None:
            raise RuntimeError("call look() after the model has called split() or linear(), and before weigh()")
        given = read_losses(self._names, sums, means, counts, num_samples(self._leaves))
        given = self._check(given, [self], self._cut_off)
        # Differentiate mean losses, whose gradients fit float16, and rescale the Gram matrix to sums afterwards.
        scalar = gradient_scale * means_of(given.sums_T, given.counts_T).sum()
        with torch.autograd.set_multithreading_enabled(False):
            torch.autograd.grad(scalar, self._leaves, allow_unused=True)
        gram_TT, weights_T = self._received_TT, divisors(given.counts_T) / gradient_scale
        assert gram_TT is not None, "the backward sets it"
        gram_TT *= weights_T[:, None]
        gram_TT *= weights_T
        gram_TT += self._gram_TT
        self._gram_TT, self._gradient_scale = gram_TT, gradient_scale
        self._sums_T = self._sums_T + given.sums_T.detach().double()
        self._counts_T, self._faults_FT = self._counts_T + given.counts_T, self._faults_FT + given.faults_FT
        self._num_micro_batches += 1
        self._leaves, self._cut_off, self._received_TT = [], [], None

    def weigh(self) -> None:
        """Find α for the whole window over all ranks. Collective, with the messages of a single batch.

        Raises:
            BalanceError: as in `Balancer.total` and its backward.
            RuntimeError: no micro-batch was added.
        """
        if not self._gram_TT.dim():
            raise RuntimeError("call look() before weigh(): the window has no micro-batch")
        message = self._ranks.sum(torch.cat([self._counts_T[None], self._faults_FT])).to(self._counts_T.device)
        self._counts_T, faults_FT = message[0], message[1:]
        weights_T = 1 / divisors(self._counts_T)
        self._gram_TT *= weights_T[:, None]
        self._gram_TT *= weights_T
        losses_T = means_of(self._sums_T, self._counts_T)
        scaled = self._gradient_scale > 1
        self.found = self._find(self._gram_TT, Totals(losses_T, self._counts_T, faults_FT, scaled))

    @outside_of_graphs
    def total(
        self,
        *losses: object,
        sums: Values | None = None,
        means: Values | None = None,
        counts: Counts | None = None,
    ) -> Tensor:
        """Turn a micro-batch's losses into the scalar to call `backward` on, in the second pass.

        The gradients of all micro-batches add up to that of the window.

        Args:
            *losses: none; see `Balancer.total`.
            sums: as for `Balancer.total`.
            means: as for `Balancer.total`.
            counts: as for `Balancer.total`.

        Raises:
            TypeError: as `Balancer.total`.
            ValueError: not one loss and one count for each task.
            RuntimeError: `weigh` was not called yet. In the backward: the scalar arrives there divided by the number of
                micro-batches, and `divided_by` does not say so.
        """
        refuse_positional(losses)
        if self.found is None:
            raise RuntimeError("call weigh() before total(): there is no α yet")
        given = read_losses(self._names, sums, means, counts, self._num_samples)
        # Times W, since the wrapper averages over the ranks, as in Balancer.total.
        scalar = self._divided_by * self._ranks.size * means_of(given.sums_T, self._counts_T).sum()
        return watched(scalar, self) if torch.is_grad_enabled() else scalar

    def begin(self, factor: Tensor) -> None:
        """See `scalar.Watcher`."""
        if self._is_checked:
            return
        self._is_checked = True  # Reading the factor waits for the GPU, so the first micro-batch answers for all.
        value, num, told = float(factor), self._num_micro_batches, self._divided_by
        if told == 1 < num and _is_scale(num * value) and (value * num == 1 or not _is_scale(value)):
            raise RuntimeError(
                f"the loss reaches the backward divided by {num}, the number of micro-batches, as Accelerate's "
                f"accumulate() divides it: every gradient would be {num} times too small. Use "
                f"balancer.window(divided_by={num})"
            )
        if told > 1 and (value == 1 or (_is_scale(value) and not _is_scale(told * value))):
            raise RuntimeError(f"window(divided_by={told}) was told, but the loss reaches the backward times {value:g}")

    def multiplies(self, num_outputs: int, width: int) -> bool:
        """See `split.Weigher`."""
        return False

    def receive(self, gram_TT: Tensor | Factored, combine: Combine) -> Weighed:
        """Keep a micro-batch's Gram matrix for `look`. Called in the first pass's backward, which stops at z."""
        assert isinstance(gram_TT, Tensor), "it never asks for factors"
        self._received_TT = gram_TT if self._received_TT is None else self._received_TT + gram_TT
        return Weighed(torch.zeros(len(self._names), dtype=torch.float64), [])

    def _cut(self, zs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Detach z from the encoder in the first pass."""
        if self.found is None:
            self._cut_off += zs
            zs = [z.detach().requires_grad_() for z in zs]
            self._leaves += zs
        else:
            self._num_samples = num_samples(zs)
        return zs


def _is_scale(factor: float) -> bool:
    """Return whether a factor can be 1 or the scale of a GradScaler, which is a power of two; to float16's rounding."""
    mantissa, _ = math.frexp(factor)
    return factor > 0 and min(abs(mantissa - 0.5), abs(mantissa - 1)) < 1e-3
