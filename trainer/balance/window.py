"""The exact α of several micro-batches, as if they were one batch, in the memory of one of them.

Every sample has its own part of z, so the Gram matrix of a window of micro-batches is the sum of theirs, as that of a
batch is the sum of its ranks'. Two passes: the first looks at each micro-batch for its Gram matrix and forgets it, the
second back-propagates each by the one α. Nothing of the size of z is kept in between.

Shapes: T tasks, B samples, C outputs a task, D representation width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.balance.factored import stacked_linear
from trainer.balance.losses import Numbers, as_tensors, means
from trainer.balance.ranks import Ranks
from trainer.balance.split import Weighed, fan_out

Solve = Callable[[Tensor, Tensor, Tensor, float], Weighed]
"""This rank's Gram matrix of the gradients of the global mean losses, given away; its part of those losses; labelled
samples over all ranks; by what the gradients were scaled -> what to do. Collective."""


class Window:
    """The micro-batches of one step. `Balancer.window()` makes it, and in the model it takes the balancer's place.

        window = balancer.window()
        with torch.random.fork_rng():  # both passes then draw the same dropout
            for x, y in micro_batches:
                window.look(*losses(model(x, window), y))
        window.weigh()  # balancer.alpha now holds α
        for x, y in micro_batches:
            window.total(*losses(model(x, window), y)).backward()

    In the first pass z has no way back to the encoder: call the bare module, since a wrapper such as DDP would wait
    for a backward. BatchNorm takes the statistics of one micro-batch at a time, unlike in one large batch, and updates
    its running ones in both passes.

    It costs one more forward of the model and one more backward of its heads. Measured with a small ResNet, 10 tasks,
    128 samples in 4 micro-batches on one core: 1.6 times the time of one batch, 1.4 times that of four micro-batches
    with an α each, and 164 MiB where one batch takes 424.

    Args:
        num_tasks: T.
        ranks: the processes that share the batch.
        solve: finds α.
    """

    def __init__(self, num_tasks: int, ranks: Ranks, solve: Solve) -> None:
        self._num_tasks = num_tasks
        self._ranks = ranks
        self._solve = solve
        # What the first pass has added up on this rank, of losses summed over the samples; after it, over all ranks.
        self._gram_TT = self._sums_T = self._counts_T = torch.zeros((), dtype=torch.float64)
        self._gradient_scale = 1.0
        self._leaf: Tensor | None = None
        self._looked_TT: Tensor | None = None
        self._weighed: Weighed | None = None

    def split(self, z: Tensor) -> tuple[Tensor, ...]:
        """See `Balancer.split`."""
        return fan_out(self._cut(z), self._num_tasks, self._weigh)

    def linear(self, z_BD: Tensor, weight_TCD: Tensor, bias_TC: Tensor | None = None) -> Tensor:
        """See `Balancer.linear`."""
        return stacked_linear(self._cut(z_BD), weight_TCD, bias_TC, self._weigh)

    def look(self, sums: Numbers, counts: Numbers, gradient_scale: float = 1.0) -> None:
        """Add a micro-batch to the window. No parameter gets a gradient by it.

        Args:
            sums: as `Balancer.total` takes them.
            counts: as `Balancer.total` takes them.
            gradient_scale: as `Balancer.total` takes it; the same for every micro-batch.
        """
        sums_T, counts_T = as_tensors(sums, counts, self._num_tasks)
        if self._leaf is None or self._weighed is not None:
            raise RuntimeError("look() comes after the model has called split() or linear(), and before weigh()")
        # The gradients of this micro-batch's mean losses, whose size float16 can hold, and of the sums only on paper.
        with torch.autograd.set_multithreading_enabled(False):
            torch.autograd.grad(gradient_scale * means(sums_T, counts_T).sum(), self._leaf)
        gram_TT, weights_T = self._looked_TT, counts_T / gradient_scale
        assert gram_TT is not None, "the backward came by"
        gram_TT *= weights_T[:, None]
        gram_TT *= weights_T
        gram_TT += self._gram_TT
        self._gram_TT, self._gradient_scale = gram_TT, gradient_scale
        self._sums_T, self._counts_T = self._sums_T + sums_T.detach().double(), self._counts_T + counts_T
        self._leaf = self._looked_TT = None

    def weigh(self) -> None:
        """Find α for the whole window over all ranks. Collective, with the messages of a single batch.

        Raises:
            NonFiniteError: as in the backward of `Balancer.total`.
        """
        if not self._gram_TT.dim():
            raise RuntimeError("weigh() came before look(): there is no micro-batch in the window")
        self._counts_T = self._ranks.sum(self._counts_T).to(self._counts_T.device)
        weights_T = 1 / self._counts_T.clamp(min=1)
        self._gram_TT *= weights_T[:, None]
        self._gram_TT *= weights_T
        losses_T = means(self._sums_T, self._counts_T)
        self._weighed = self._solve(self._gram_TT, losses_T, self._counts_T, self._gradient_scale)

    def total(self, sums: Numbers, counts: Numbers) -> Tensor:
        """Turn a micro-batch's loss sums into the scalar to call `backward` on; the gradients of all add up.

        Args:
            sums: as `Balancer.total` takes them.
            counts: as `Balancer.total` takes them.
        """
        if self._weighed is None:
            raise RuntimeError("total() came before weigh(): there is no α yet")
        sums_T, _ = as_tensors(sums, counts, self._num_tasks)
        # W for the wrapper's average over the ranks, as in Balancer.total.
        return self._ranks.size * means(sums_T, self._counts_T).sum()

    def _cut(self, z: Tensor) -> Tensor:
        """In the first pass, leave the encoder out of the backward."""
        if self._weighed is None:
            z = self._leaf = z.detach().requires_grad_()
        return z

    def _weigh(self, compute_gram: Callable[[], Tensor]) -> Weighed:
        """Run inside a backward of the heads."""
        if self._weighed is not None:
            return self._weighed
        self._looked_TT = compute_gram()
        return Weighed(torch.zeros(self._num_tasks, dtype=torch.float64), [])
