"""Rules that invert the Gram matrix: equal projections on all tasks, and orthogonal components of equal length.

All three weigh by the inverse of a matrix that is singular where gradients depend on each other. Eigenvalues below
`RANK`, relative to the largest, are taken for rounding and their directions left out; the weights are then those of the
smallest norm. Weights may be negative.

Shapes: A active tasks, M those with a gradient, K eigenvalues kept.
"""

import numpy as np

from paretrain.rules.rule import Stateless, Weights, in_units_of_the_mean

RANK = 1e-6
"""Gradients of networks are in float32, so smaller eigenvalues are rounding."""


class IMTLG(Stateless):
    """IMTL-G (Liu et al. 2021, "Towards Impartial Multi-task Learning"): equal projections on all tasks.

    The combined gradient has the same inner product with every g_t / |g_t|, and the weights sum to 1. Where the
    equations have no solution, as for opposite gradients, or one whose sum is 0, all weights are 0.
    """

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Solve for the weights; a zero gradient has weight 0."""
        _, alpha_A = _equal_projections(in_units_of_the_mean(gram_AA))
        total = alpha_A.sum()
        return Weights(alpha_A / total if abs(total) > RANK * np.abs(alpha_A).sum() else np.zeros_like(alpha_A))


class ConFIG(Stateless):
    """ConFIG (Liu, Chu & Thuerey 2025, arXiv 2408.11104): equal projections, and their mean length.

    The direction is that of IMTL-G. Its length is the mean of the g_t's lengths along it, where the paper takes their
    sum, so that a learning rate carries over from other rules. All weights are 0 where the equations have no solution.
    """

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Solve for the direction and project the gradients; a zero gradient has weight 0."""
        gram_AA = in_units_of_the_mean(gram_AA)
        projection, alpha_A = _equal_projections(gram_AA)
        squared = float(alpha_A @ gram_AA @ alpha_A)
        return Weights(alpha_A * (gram_AA @ alpha_A).mean() / squared if projection else alpha_A)


class AlignedMTL(Stateless):
    """Aligned-MTL (Senushkin et al. 2023, CVPR, Algorithm 1): gradients made orthogonal, all of the smallest length.

    With G = V Σ² Vᵀ the weights are σ V Σ⁻¹ Vᵀ w, where w = 1/A and σ is the smallest singular value kept.
    """

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Weigh by the inverse square root of the Gram matrix."""
        mean_A = np.full(len(tasks_A), 1 / len(tasks_A))
        values_K, vectors_AK = _kept(in_units_of_the_mean(gram_AA))
        if not len(values_K):
            return Weights(mean_A)
        return Weights(vectors_AK @ (np.sqrt(values_K[0] / values_K) * (vectors_AK.T @ mean_A)))


def _equal_projections(gram_AA: np.ndarray) -> tuple[bool, np.ndarray]:
    """Return whether weights exist whose combination has inner product 1 with every g_t / |g_t|, and the weights.

    Where gradients depend on each other, the equations are solved by least squares; where that leaves nothing of them,
    the weights are 0.
    """
    lengths_A = np.sqrt(gram_AA.diagonal())
    moving, alpha_A = np.flatnonzero(lengths_A), np.zeros(len(gram_AA))
    lengths_M = lengths_A[moving]
    values_K, vectors_MK = _kept(gram_AA[np.ix_(moving, moving)] / np.outer(lengths_M, lengths_M))
    ones_K = vectors_MK.sum(axis=0)
    if ones_K @ ones_K <= RANK * len(moving):
        return False, alpha_A
    alpha_A[moving] = vectors_MK @ (ones_K / values_K) / lengths_M
    return True, alpha_A


def _kept(matrix_MM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues above rounding, ascending, and their vectors."""
    values_M, vectors_MM = np.linalg.eigh(matrix_MM)
    kept = values_M > RANK * max(values_M[-1:], default=0.0)
    return values_M[kept], vectors_MM[:, kept]
