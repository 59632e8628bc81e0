"""The wire of one step: pack -> reduce to rank 0 -> decide there -> broadcast the verdict.

z is rank-local, so the Gram matrix of the whole batch is the plain sum of the ranks' Gram matrices. One symmetric T x T
matrix and T + W numbers travel, whatever the size of the batch, the representation and the model. Every rank sends and
receives the same two messages in every step and leaves with the same verdict or the same error.

Shapes: T tasks, W ranks.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from paretrain.balance import BalanceError
from paretrain.factored import Factored
from paretrain.gram import diagonal
from paretrain.losses import FAULTS
from paretrain.packing import pack, packed_size, unpack
from paretrain.products import SummedProducts, serve
from paretrain.ranks import Ranks
from paretrain.verdict import Batch, Outcome, Verdict, failed, verdict_size


def exchange(
    gram_TT: Tensor | Factored,
    losses_T: Tensor,
    counts_T: Tensor,
    ranks: Ranks,
    decide: Callable[[Batch], Verdict],
) -> tuple[Verdict, np.ndarray | None]:
    """Sum the ranks' shares on rank 0, decide there, and tell every rank. Collective.

    Args:
        gram_TT: float64 Gram matrix of this rank's part of the gradients of the global mean losses; overwritten. Its
            diagonal, (T,), in a step that holds α; or its factors, where products are enough for `decide`.
        losses_T: this rank's part of the global mean losses.
        counts_T: labelled samples of each task over all ranks.
        ranks: the processes that share the batch.
        decide: called on rank 0 only. Whatever it raises reaches every rank.

    Returns:
        The verdict, the same bits on all ranks; and the batch's Gram matrix on rank 0, None elsewhere and
        where there are factors.

    Raises:
        BalanceError: `decide` raised on rank 0. All ranks raise the same words; none is left waiting.
    """
    factors = gram_TT if isinstance(gram_TT, Factored) else None
    local_TT = gram_TT.diagonal() if isinstance(gram_TT, Factored) else gram_TT
    batch = _reduce(local_TT, losses_T, counts_T, ranks)
    num_tasks, failure = len(counts_T), ""
    packed = np.zeros(verdict_size(num_tasks, ranks.size))
    products = SummedProducts(factors, batch.gram_TT, ranks) if factors and ranks.rank == 0 else None
    if ranks.rank == 0:
        try:
            packed = decide(batch._replace(products=products)).pack()
        except Exception as error:  # Whatever it was, the other ranks wait for the broadcast.
            packed, failure = failed(num_tasks, ranks.size).pack(), f"{type(error).__name__}: {error}"
        if products:
            products.end()
    elif factors:
        serve(factors, num_tasks, ranks)
    packed = ranks.broadcast(torch.from_numpy(packed).to(local_TT.device)).cpu().numpy()
    verdict = Verdict.unpack(packed, num_tasks)
    if verdict.outcome is Outcome.FAILED:
        raise BalanceError(f"the weighting failed on rank 0: {ranks.broadcast_text(failure)}")
    return verdict, batch.gram_TT if ranks.rank == 0 and factors is None else None


def message_bytes(num_tasks: int, num_ranks: int) -> int:
    """Return the bytes that one rank sends or receives a step for α; float64.

    They are counts and faults, the packed Gram matrix, and the verdict.
    """
    return 8 * (
        (1 + len(FAULTS)) * num_tasks
        + packed_size(num_tasks)
        + num_tasks
        + num_ranks
        + verdict_size(num_tasks, num_ranks)
    )


def _reduce(gram_TT: Tensor, losses_T: Tensor, counts_T: Tensor, ranks: Ranks) -> Batch:
    """Return the whole batch's numbers on rank 0; elsewhere they are unspecified."""
    broken_W = gram_TT.new_zeros(ranks.size)
    broken_W[ranks.rank] = ~(diagonal(gram_TT).isfinite() & losses_T.isfinite()).all()
    counts = counts_T.cpu().numpy()
    if ranks.size == 1:
        return Batch(gram_TT.cpu().numpy(), losses_T.cpu().numpy(), counts, broken_W.cpu().numpy())
    more = losses_T.to(gram_TT), broken_W
    is_whole = gram_TT.dim() == 2
    message = ranks.reduce(pack(gram_TT, *more) if is_whole else torch.cat([gram_TT, *more])).cpu()
    sizes = [packed_size(len(losses_T)) if is_whole else len(gram_TT), len(losses_T), ranks.size]
    packed, means_T, broken_W = torch.split(message, sizes)
    reduced_TT = gram_TT.cpu() if is_whole else packed
    if ranks.rank == 0 and is_whole:
        unpack(packed, reduced_TT)
    return Batch(reduced_TT.numpy(), means_T.numpy(), counts, broken_W.numpy())
