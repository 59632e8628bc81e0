"""Gram matrices of task gradients in float64: from gradients in memory, and from the first layer of stacked heads.

Products of float32 numbers are exact in float64. Summed in float32, the Gram matrix of dependent gradients would be
indefinite by 1e-7, and its minimum and the certificate of it would be noise. For 1000 linear heads on z of width 512,
float64 takes 20 ms of one core instead of 10.

Shapes: T tasks, B samples, C outputs a task (K after `reduced`), D representation width, N = B * D entries of z,
R = T K rows.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_ENTRIES = 2**22
"""Entries of task gradients that are converted to float64 at a time: 32 MiB."""

BLOCK_TASKS = 128
"""Rows of the matrix that are computed at a time; the part left of the diagonal block follows from symmetry."""


def gram(gradients_TN: Tensor) -> Tensor:
    """Return the Gram matrix of the rows: float64, (T, T)."""
    gram_TT = _zeros(gradients_TN)
    _add(gram_TT, gradients_TN)
    return _mirrored(gram_TT)


def norms(gradients_TN: Tensor) -> Tensor:
    """Return the squared norms of the rows, which are the diagonal of `gram`: float64, (T,)."""
    norms_T = gradients_TN.new_zeros(len(gradients_TN), dtype=torch.float64)
    for chunk_Tn in torch.split(gradients_TN, _columns(len(gradients_TN)), dim=1):
        norms_T += chunk_Tn.double().square().sum(dim=1)
    return norms_T


def stacked_norms(errors_BTC: Tensor, weight_TCD: Tensor) -> Tensor:
    """Return the diagonal of `stacked_gram`, by the same choice of two methods: float64, (T,)."""
    errors_BTK, weight_TKD = reduced(errors_BTC, weight_TCD)
    num_tasks, num_outputs, width = weight_TKD.shape
    if _has_few_outputs(errors_BTK, weight_TKD):
        return factored_norms(errors_BTK.flatten(1).T.contiguous(), weight_TKD.flatten(0, 1), num_outputs)
    norms_T = weight_TKD.new_zeros(num_tasks, dtype=torch.float64)
    for errors_TbK in torch.split(errors_BTK.transpose(0, 1), max(1, _columns(num_tasks) // width), dim=1):
        norms_T += norms((errors_TbK @ weight_TKD).flatten(1))
    return norms_T


def factored_norms(errors_RB: Tensor, weight_RD: Tensor, num_outputs: int) -> Tensor:
    """Return the squared norms of g_t = E_t W_t, Σ_kl (E_tᵀ E_t)_kl (W_t W_tᵀ)_kl: float64, (T,).

    Args:
        errors_RB: the K errors of each task, one task after another.
        weight_RD: the K rows of weights of each task, in the same order.
        num_outputs: K.
    """
    if num_outputs == 1:
        lengths_T: Tensor = torch.linalg.vector_norm(errors_RB, dim=1, dtype=torch.float64)
        lengths_T *= torch.linalg.vector_norm(weight_RD, dim=1, dtype=torch.float64)
        return lengths_T.square()
    errors_TKB, weight_TKD = (rows.double().view(-1, num_outputs, rows.shape[1]) for rows in (errors_RB, weight_RD))
    norms_T: Tensor = ((errors_TKB @ errors_TKB.mT) * (weight_TKD @ weight_TKD.mT)).sum(dim=(1, 2))
    return norms_T


def diagonal(gram_TT: Tensor) -> Tensor:
    """Return the diagonal of a Gram matrix, or what is a diagonal already."""
    return gram_TT if gram_TT.dim() == 1 else gram_TT.diagonal()


def stacked_gram(errors_BTC: Tensor, weight_TCD: Tensor) -> Tensor:
    """Return the Gram matrix of the gradients g_t = E_t W_t of T linear maps z -> z W_tᵀ: float64, (T, T).

    Uses whichever of two methods takes fewer operations: the factored form
    <g_s, g_t> = Σ_cc' (E_sᵀ E_t)_cc' (W_s W_tᵀ)_cc' for few outputs, such as those of a classification; or explicit
    gradients of a few samples at a time for many outputs, such as those of a hidden layer. Neither allocates a
    T x B x D tensor.

    Args:
        errors_BTC: gradients of the tasks' losses with respect to the outputs.
        weight_TCD: weights of the linear maps.
    """
    errors_BTK, weight_TKD = reduced(errors_BTC, weight_TCD)
    if _has_few_outputs(errors_BTK, weight_TKD):
        return _mirrored(_factored(errors_BTK.double(), weight_TKD.double()))
    num_tasks, _, width = weight_TKD.shape
    gram_TT = _zeros(weight_TKD)
    errors_TBK = errors_BTK.transpose(0, 1)
    for errors_TbK in torch.split(errors_TBK, max(1, _columns(num_tasks) // width), dim=1):
        _add(gram_TT, (errors_TbK @ weight_TKD).flatten(1))
    return _mirrored(gram_TT)


def reduced(errors_BTC: Tensor, weight_TCD: Tensor) -> tuple[Tensor, Tensor]:
    """Drop one output if the errors of each sample and task sum to zero, as those of a softmax do.

    Then Σ_c e_c w_c = Σ_{c>0} e_c (w_c - w_0). A sum counts as zero within the rounding of the errors themselves, so
    for any loss the result changes by no more than another rounding of e_0 would change it.
    """
    num_outputs = errors_BTC.shape[2]
    rounding_BT = num_outputs * torch.finfo(errors_BTC.dtype).eps * errors_BTC.abs().amax(dim=2)
    if num_outputs == 1 or not bool((errors_BTC.sum(dim=2).abs() <= rounding_BT).all()):
        return errors_BTC, weight_TCD
    return errors_BTC[:, :, 1:], weight_TCD[:, 1:] - weight_TCD[:, :1]


def _has_few_outputs(errors_BTK: Tensor, weight_TKD: Tensor) -> bool:
    """Return whether the factored form takes fewer operations than explicit gradients."""
    num_samples, _, num_outputs = errors_BTK.shape
    width = weight_TKD.shape[2]
    return (num_samples + width) * num_outputs**2 <= num_samples * width


def _factored(errors_BTK: Tensor, weight_TKD: Tensor) -> Tensor:
    num_tasks, num_outputs, _ = weight_TKD.shape
    gram_TT = weight_TKD.new_empty((num_tasks, num_tasks))
    for rows, columns in _upper_blocks(num_tasks):
        left_Bt, right_Bu = errors_BTK[:, rows].flatten(1), errors_BTK[:, columns].flatten(1)
        products_tu = left_Bt.T @ right_Bu
        products_tu *= weight_TKD[rows].flatten(0, 1) @ weight_TKD[columns].flatten(0, 1).T
        if num_outputs > 1:
            products_tu = products_tu.view(-1, num_outputs, num_tasks - rows.start, num_outputs).sum((1, 3))
        gram_TT[rows, columns] = products_tu
    return gram_TT


def _add(gram_TT: Tensor, gradients_TN: Tensor) -> None:
    """Add the products of the rows to the upper blocks."""
    num_tasks = len(gradients_TN)
    for chunk_Tn in torch.split(gradients_TN, _columns(num_tasks), dim=1):
        wide_Tn = chunk_Tn.double()
        for rows, columns in _upper_blocks(num_tasks):
            gram_TT[rows, columns].addmm_(wide_Tn[rows], wide_Tn[columns].T)


def _columns(num_tasks: int) -> int:
    """Return how many columns to convert to float64 at a time: at most 32,768, since longer sums round more."""
    return max(1, CHUNK_ENTRIES // max(num_tasks, BLOCK_TASKS))


def _zeros(like_T: Tensor) -> Tensor:
    return like_T.new_zeros((len(like_T), len(like_T)), dtype=torch.float64)


def _upper_blocks(num_tasks: int) -> Iterator[tuple[slice, slice]]:
    for start in range(0, num_tasks, BLOCK_TASKS):
        yield slice(start, start + BLOCK_TASKS), slice(start, num_tasks)


def _mirrored(gram_TT: Tensor) -> Tensor:
    """Fill the lower blocks in place."""
    for rows, _ in _upper_blocks(len(gram_TT)):
        gram_TT[rows.stop :, rows] = gram_TT[rows, rows.stop :].T
    return gram_TT
