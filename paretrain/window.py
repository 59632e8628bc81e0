"""The exact α of several micro-batches, as of one batch, in the memory of one micro-batch.

Every sample has its own part of z, so the Gram matrix of a window of micro-batches is the sum of their Gram matrices,
just as that of a batch is the sum over its ranks. The first pass computes the Gram matrix of each micro-batch; the
second back-propagates each with the common α. Nothing of the size of z is kept in between.

Shapes: T tasks, B samples, C outputs a task, D representation width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from paretrain.losses import Counts, Sums, Totals, as_tensors, means
from paretrain.ranks import Ranks
from paretrain.split import Weighed, fan_out
from paretrain.stacked import stacked_linear


class Window:
    """The micro-batches of one step. `Balancer.window()` returns one; pass it to the model in place of the balancer.

        window = balancer.window()
        with torch.random.fork_rng():  # both passes then draw the same dropout
            for x, y in micro_batches:
                window.look(*losses(model(x, window), y))
        window.weigh()  # balancer.alpha now holds α
        for x, y in micro_batches:
            window.total(*losses(model(x, window), y)).backward()

    The first pass detaches z from the encoder: call the bare module in it, since a wrapper such as DDP would wait for a
    backward. BatchNorm uses the statistics of one micro-batch at a time and updates its running statistics in both
    passes.

    The cost is one more forward of the model and one more backward of its heads. With a small ResNet, 10 tasks and 128
    samples in 4 micro-batches on one core, a step took 1.6 times as long as with one batch, 1.4 times as long as with
    four micro-batches with an α each, and 164 MiB instead of the 424 of one batch.

    Args:
        num_tasks: T.
        ranks: the processes that share the batch.
        find: turns this rank's Gram matrix (float64, overwritten) of the gradients of the global mean losses into α.
            Collective.

    Attributes:
        found: α after `weigh`, None before it. This class implements `split.Weigher`.
    """

    def __init__(self, num_tasks: int, ranks: Ranks, find: Callable[[Tensor, Totals], Weighed]) -> None:
        self.found: Weighed | None = None
        self._num_tasks = num_tasks
        self._ranks = ranks
        self._find = find
        # Sums over this rank's samples during the first pass; `weigh` replaces the counts with the global ones.
        self._gram_TT = self._sums_T = self._counts_T = torch.zeros((), dtype=torch.float64)
        self._gradient_scale = 1.0
        self._leaf: Tensor | None = None
        self._received_TT: Tensor | None = None

    def split(self, z: Tensor) -> tuple[Tensor, ...]:
        """Give each task its view of z; see `Balancer.split`."""
        return fan_out(self._cut(z), self._num_tasks, self)

    def linear(self, z_BD: Tensor, weight_TCD: Tensor, bias_TC: Tensor | None = None) -> Tensor:
        """Apply the first layer of stacked heads; see `Balancer.linear`."""
        return stacked_linear(self._cut(z_BD), weight_TCD, bias_TC, self)

    def look(self, sums: Sums, counts: Counts, gradient_scale: float = 1.0) -> None:
        """Add a micro-batch to the window, in the first pass. No parameter gets a gradient.

        Args:
            sums: loss sums, as for `Balancer.total`.
            counts: sample counts, as for `Balancer.total`.
            gradient_scale: as for `Balancer.total`; the same for every micro-batch.

        Raises:
            ValueError: not one sum and one count for each task.
            RuntimeError: the model did not call `split` or `linear`, or `weigh` was called already.
        """
        sums_T, counts_T = as_tensors(sums, counts, self._num_tasks)
        if self._leaf is None or self.found is not None:
            raise RuntimeError("call look() after the model has called split() or linear(), and before weigh()")
        # Differentiate mean losses, whose gradients fit float16, and rescale the Gram matrix to sums afterwards.
        with torch.autograd.set_multithreading_enabled(False):
            torch.autograd.grad(gradient_scale * means(sums_T, counts_T).sum(), self._leaf)
        gram_TT, weights_T = self._received_TT, counts_T / gradient_scale
        assert gram_TT is not None, "the backward sets it"
        gram_TT *= weights_T[:, None]
        gram_TT *= weights_T
        gram_TT += self._gram_TT
        self._gram_TT, self._gradient_scale = gram_TT, gradient_scale
        self._sums_T, self._counts_T = self._sums_T + sums_T.detach().double(), self._counts_T + counts_T
        self._leaf = self._received_TT = None

    def weigh(self) -> None:
        """Find α for the whole window over all ranks. Collective, with the messages of a single batch.

        Raises:
            BalanceError: as in the backward of `Balancer.total`.
            RuntimeError: no micro-batch was added.
        """
        if not self._gram_TT.dim():
            raise RuntimeError("call look() before weigh(): the window has no micro-batch")
        self._counts_T = self._ranks.sum(self._counts_T).to(self._counts_T.device)
        weights_T = 1 / self._counts_T.clamp(min=1)
        self._gram_TT *= weights_T[:, None]
        self._gram_TT *= weights_T
        losses_T = means(self._sums_T, self._counts_T)
        self.found = self._find(self._gram_TT, Totals(losses_T, self._counts_T, self._gradient_scale))

    def total(self, sums: Sums, counts: Counts) -> Tensor:
        """Turn a micro-batch's loss sums into the scalar to call `backward` on, in the second pass.

        The gradients of all micro-batches add up to that of the window.

        Args:
            sums: loss sums, as for `Balancer.total`.
            counts: sample counts, as for `Balancer.total`.

        Raises:
            ValueError: not one sum and one count for each task.
            RuntimeError: `weigh` was not called yet.
        """
        if self.found is None:
            raise RuntimeError("call weigh() before total(): there is no α yet")
        sums_T, _ = as_tensors(sums, counts, self._num_tasks)
        # Times W, since the wrapper averages over the ranks, as in Balancer.total.
        return self._ranks.size * means(sums_T, self._counts_T).sum()

    def _cut(self, z: Tensor) -> Tensor:
        """Detach z from the encoder in the first pass."""
        if self.found is None:
            z = self._leaf = z.detach().requires_grad_()
        return z

    def receive(self, gram_TT: Tensor) -> Weighed:
        """Keep a micro-batch's Gram matrix for `look`. Called in the first pass's backward, which stops at z."""
        self._received_TT = gram_TT
        return Weighed(torch.zeros(self._num_tasks, dtype=torch.float64), [])
