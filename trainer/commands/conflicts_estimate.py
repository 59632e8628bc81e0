"""From the gradients of several batches to what can be said of their conflicts beyond noise. Pure.

Shapes: K batches, T tasks, P parameters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paretrain.minnorm import solve
from trainer.plain import listed

CHANCE = 0.05
"""Probability that any of all cosines, or of all tasks, seems to differ from 0 where there is nothing but noise."""

MAX_RAISED = 3
"""Tasks that the sentence names."""

AT_Z, IN_PARAMETERS = "at the representation", "in the encoder's parameters"


@dataclass(frozen=True)
class Conflicts:
    """What the Gram matrices of K batches say.

    Attributes:
        cosine_TT: mean over batches of the cosine of each pair; NaN where no batch has both tasks.
        error_TT: its standard error.
        sure_TT: bool, whether it differs from 0 by more than noise; False on the diagonal.
        length_T: root mean square of the gradients' norms.
        uniform_T: mean over batches of g_t · (mean gradient), relative to |g_t| |mean gradient|: negative where a step
            of equal weights raises the task's loss.
        uniform_error_T: its standard error.
        raised: the tasks for which it is below 0 by more than noise.
        min_norm: mean over batches of the squared min-norm point, relative to the mean squared gradient: 1 where all
            gradients are equal, 0 where no direction improves every task. Noise makes it larger.
        min_norm_error: its standard error.
    """

    cosine_TT: np.ndarray
    error_TT: np.ndarray
    sure_TT: np.ndarray
    length_T: np.ndarray
    uniform_T: np.ndarray
    uniform_error_T: np.ndarray
    raised: list[int]
    min_norm: float
    min_norm_error: float

    @property
    def opposing(self) -> list[tuple[int, int]]:
        """The pairs of tasks whose cosine is below 0 by more than noise, the strongest first."""
        found = np.argwhere(np.triu(self.sure_TT & (self.cosine_TT < 0)))
        return sorted(((int(s), int(t)) for s, t in found), key=lambda pair: self.cosine_TT[pair])


@dataclass(frozen=True)
class Moment:
    """The findings at one moment of the training.

    Attributes:
        step: optimizer steps before it.
        at_z: of the gradients with respect to the representation.
        in_parameters: of those with respect to the encoder's trained parameters.
        in_blocks: the same, for one part of the encoder each.
        corrected: the squared min-norm point in the parameters without the bias of noise, and its standard error.
        groups: of tasks that agree in the parameters.
    """

    step: int
    at_z: Conflicts
    in_parameters: Conflicts
    in_blocks: Mapping[str, Conflicts]
    corrected: tuple[float, float]
    groups: Sequence[Sequence[int]]


def conflicts(grams_KTT: np.ndarray) -> Conflicts:
    """Summarise the Gram matrices of K >= 2 batches. An absent task has a row of zeros."""
    squared_KT = grams_KTT.diagonal(axis1=1, axis2=2)
    present_KT = squared_KT > 0
    norms_KT = np.where(present_KT, np.sqrt(squared_KT), np.nan)
    cosine_TT, error_TT = _mean(grams_KTT / (norms_KT[:, :, None] * norms_KT[:, None, :]))
    slopes_KT = grams_KTT.mean(axis=2)
    lengths_K = np.sqrt(slopes_KT.mean(axis=1).clip(min=0))
    lengths_K[lengths_K == 0] = np.nan
    uniform_T, uniform_error_T = _mean(slopes_KT / (norms_KT * lengths_K[:, None]))
    values = []
    for gram_TT, present_T in zip(grams_KTT, present_KT, strict=True):
        if present_T.any():
            gram_AA = gram_TT[np.ix_(present_T, present_T)]
            values.append(solve(gram_AA).value / gram_AA.diagonal().mean())
    min_norm, min_norm_error = _mean(np.array(values))
    counts_T = np.maximum(present_KT.sum(axis=0), 1)
    length_T = np.sqrt(squared_KT.sum(axis=0) / counts_T)
    together_TT = present_KT.T.astype(int) @ present_KT
    num_tasks = len(length_T)
    sure_TT = _beyond_noise(cosine_TT, error_TT, together_TT, num_tests=num_tasks * (num_tasks - 1) // 2)
    sure_T = _beyond_noise(uniform_T, uniform_error_T, together_TT.diagonal(), num_tests=num_tasks)
    return Conflicts(
        cosine_TT=cosine_TT,
        error_TT=error_TT,
        sure_TT=sure_TT & ~np.eye(num_tasks, dtype=bool),
        length_T=length_T,
        uniform_T=uniform_T,
        uniform_error_T=uniform_error_T,
        raised=np.flatnonzero(sure_T & (uniform_T < 0)).tolist(),
        min_norm=float(min_norm),
        min_norm_error=float(min_norm_error),
    )


def corrected_min_norm(cross_333TT: np.ndarray) -> tuple[float, float]:
    """Estimate the squared min-norm point of the true gradients, without the bias of noise, and its spread.

    The batches are in three groups. The weights come from one group, the value from the inner products of the other
    two, whose noise is independent of it and of one another. Each group takes each part once.

    Args:
        cross_333TT: (3, 3, T, T): inner products of the mean gradients of two groups.

    Returns:
        The mean of the three values, relative to the mean squared true gradient estimated likewise, and their standard
        error. The value may be negative: then it is 0 within noise. NaN where the gradients are all noise.
    """
    values, scales = [], []
    for one, other, weighing in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        alpha_T = solve(cross_333TT[weighing, weighing]).alpha_T
        values.append(float(alpha_T @ cross_333TT[one, other] @ alpha_T))
        scales.append(float(cross_333TT[one, other].diagonal().mean()))
    scale = float(np.mean(scales))
    if scale <= 0:
        return np.nan, np.nan
    return float(np.mean(values)) / scale, float(np.std(values, ddof=1) / np.sqrt(3)) / scale


def agreeing_groups(found: Conflicts) -> list[list[int]]:
    """Return groups of tasks whose gradients agree: average linkage on the cosines that noise does not explain.

    Two groups are joined as long as the mean cosine between them is above 0.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    num_tasks = len(found.length_T)
    if num_tasks < 2:
        return [list(range(num_tasks))]
    sure_TT = np.where(found.sure_TT, found.cosine_TT, 0.0)
    distance_TT = 1 - (sure_TT + sure_TT.T) / 2
    np.fill_diagonal(distance_TT, 0)
    labels_T = fcluster(linkage(squareform(distance_TT.clip(min=0)), "average"), t=1 - 1e-6, criterion="distance")
    groups = [np.flatnonzero(labels_T == label).tolist() for label in np.unique(labels_T)]
    return sorted(groups, key=lambda group: (-len(group), group))


def verdict(at_z: Conflicts, in_parameters: Conflicts, tasks: Sequence[str]) -> str:
    """Return one sentence: has balancing anything to win here, and which space sees it?"""
    num_pairs = len(tasks) * (len(tasks) - 1) // 2
    seen = {AT_Z: at_z, IN_PARAMETERS: in_parameters}
    counts = {space: len(found.opposing) for space, found in seen.items()}
    raised = [tasks[task] for task in in_parameters.raised]
    ratio = in_parameters.length_T[in_parameters.length_T > 0]
    unlike = float(ratio.max() / ratio.min()) if len(ratio) else 1.0
    lengths = f"the longest gradient is {unlike:.1f} times the shortest"
    if raised:
        start = (
            f"balancing has something to win: a step of equal weights raises the loss of {listed(raised, MAX_RAISED)}"
        )
    elif any(counts.values()):
        start = "balancing may win a little: some tasks conflict, but a step of equal weights lowers every loss"
    elif unlike > 10:
        start = f"no two tasks conflict beyond noise, but {lengths}: evening out lengths is all that balancing can win"
    else:
        return f"balancing has little to win: no two of {len(tasks)} tasks conflict beyond noise, and {lengths}"
    if not any(counts.values()):
        return start
    where = " and ".join(f"{count} {space}" for space, count in counts.items())
    noun, blind = "pair" if num_pairs == 1 else "pairs", ""
    if counts[IN_PARAMETERS] and not counts[AT_Z]:
        blind = "; only the parameters see it: balance.space=parameters"
    if counts[AT_Z] and not counts[IN_PARAMETERS]:
        blind = "; the encoder's parameters do not see it, so it need not matter to the encoder"
    return f"{start}; of {num_pairs} {noun}, {where} conflict beyond noise{blind}"


def _beyond_noise(mean: np.ndarray, error: np.ndarray, counts: np.ndarray, num_tests: int) -> np.ndarray:
    """Return which means differ from 0, by Student's t test with Bonferroni's correction for `num_tests` tests."""
    from scipy.stats import t

    limit = t.ppf(1 - CHANCE / 2 / max(1, num_tests), np.maximum(counts - 1, 1))
    sure: np.ndarray = np.abs(mean) > limit * error
    return sure


def _mean(values_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over the first axis and its standard error, of the values that are not NaN; else NaN."""
    known_K = ~np.isnan(values_K)
    counts = known_K.sum(axis=0)
    sums = np.where(known_K, values_K, 0).sum(axis=0)
    mean = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    squares = (np.where(known_K, values_K - mean, 0) ** 2).sum(axis=0)
    error = np.divide(squares, counts * (counts - 1.0), out=np.full(sums.shape, np.nan), where=counts > 1)
    return mean, np.sqrt(error)
