"""Sum what least squares need, over batches and over processes.

Shapes: B rows of a batch, D features, C columns of labels.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from paretrain.theory.arrays import Array


@dataclass(frozen=True)
class _Rows:
    """The sums over some rows, and the columns that have their labels on just these."""

    columns: list[int]
    count: int
    sum_D: Array
    outer_DD: Array


class SecondMoments:
    """Second moments of features and labels. Columns whose labels are on the same rows share one D x D matrix.

    Labels may be missing (NaN); the sums of each column are over its own labelled rows, exactly.

    Args:
        origin_D: a point near the features' mean: moments around a mean lose fewer digits.
        num_columns: C.
    """

    def __init__(self, origin_D: Array, num_columns: int) -> None:
        width = len(origin_D)
        self._origin_D = origin_D
        self._rows = [_Rows(list(range(num_columns)), 0, np.zeros(width), np.zeros((width, width)))]
        self._label_sum_C: Array = np.zeros(num_columns)
        self._square_sum_C: Array = np.zeros(num_columns)
        self._cross_DC: Array = np.zeros((width, num_columns))

    def add(self, features_BD: Array, labels_BC: Array) -> None:
        """Add a batch."""
        moved_BD, known_BC = features_BD - self._origin_D, ~np.isnan(labels_BC)
        self._split(lambda column: known_BC[:, column].tobytes())
        self._rows = [_with(rows, moved_BD[known_BC[:, rows.columns[0]]]) for rows in self._rows]
        filled_BC = np.where(known_BC, labels_BC, 0)
        self._label_sum_C += filled_BC.sum(axis=0)
        self._square_sum_C += (filled_BC**2).sum(axis=0)
        self._cross_DC += moved_BD.T @ filled_BC

    @property
    def groups(self) -> list[list[int]]:
        """The columns that have had all their labels on the same rows."""
        return [rows.columns for rows in self._rows]

    def sum_over(self, groups: Iterable[Sequence[Sequence[int]]], total: Callable[[Array], Array]) -> None:
        """Replace the sums by those of several processes, which have added parts of the rows around one origin.

        Args:
            groups: the `groups` of each process, in the same order on all.
            total: returns the sum of an array (1 axis) over the processes.
        """
        for of_process in groups:
            self._split({column: number for number, group in enumerate(of_process) for column in group}.__getitem__)
        self._rows.sort(key=lambda rows: rows.columns)
        parts: list[Array] = [np.array([rows.count for rows in self._rows], dtype=float)]
        parts += [array for rows in self._rows for array in (rows.sum_D, rows.outer_DD)]
        parts += [self._label_sum_C, self._square_sum_C, self._cross_DC]
        ends = np.cumsum([part.size for part in parts])[:-1]
        flat = np.split(total(np.concatenate([part.ravel() for part in parts])), ends)
        counts, *sums, self._label_sum_C, self._square_sum_C, self._cross_DC = (
            values.reshape(part.shape) for values, part in zip(flat, parts, strict=True)
        )
        self._rows = [
            _Rows(rows.columns, round(count), sum_D, outer_DD)
            for rows, count, sum_D, outer_DD in zip(self._rows, counts, sums[::2], sums[1::2], strict=True)
        ]

    def columns(self) -> "list[Column]":
        """Return each column's moments around its means, with labels of unit variance.

        Raises:
            ValueError: a column has fewer than two labels or one value only.
        """
        found: dict[int, Column] = {}
        for rows in self._rows:
            mean_D = rows.sum_D / max(rows.count, 1)
            covariance = Covariance(rows.outer_DD / max(rows.count, 1) - np.outer(mean_D, mean_D), rows.count)
            for c in rows.columns:
                mean = self._label_sum_C[c] / max(rows.count, 1)
                variance = self._square_sum_C[c] / max(rows.count, 1) - mean**2
                if rows.count < 2 or variance <= 1e-12 * max(mean**2, 1e-300):
                    raise ValueError(f"column {c} has {rows.count} labels with a variance of {variance:.3g}")
                deviation = float(np.sqrt(variance))
                cross_D = (self._cross_DC[:, c] / rows.count - mean_D * mean) / deviation
                found[c] = Column(covariance, cross_D, float(mean), deviation, self._origin_D + mean_D)
        return [found[c] for c in range(len(found))]

    def _split(self, key: Callable[[int], object]) -> None:
        """Part the columns that have had their labels on the same rows, but have different keys now."""
        parted = []
        for rows in self._rows:
            parts: dict[object, list[int]] = {}
            for column in rows.columns:
                parts.setdefault(key(column), []).append(column)
            parted += [_Rows(columns, rows.count, rows.sum_D, rows.outer_DD) for columns in parts.values()]
        self._rows = parted


def _with(rows: _Rows, here_BD: Array) -> _Rows:
    return _Rows(
        rows.columns, rows.count + len(here_BD), rows.sum_D + here_BD.sum(axis=0), rows.outer_DD + here_BD.T @ here_BD
    )


@dataclass
class Covariance:
    """Hold the covariance of some rows' features, and its eigenvectors once they are asked for."""

    matrix_DD: Array
    count: int
    _eigen: tuple[Array, Array] | None = field(default=None, repr=False)

    def eigen(self) -> tuple[Array, Array]:
        """Return eigenvalues (D) and eigenvectors (D x D)."""
        if self._eigen is None:
            values_D, vectors_DD = np.linalg.eigh(self.matrix_DD)
            self._eigen = np.maximum(values_D, 0), vectors_DD
        return self._eigen


@dataclass(frozen=True)
class Column:
    """Hold a column's moments: the covariance of its rows' features, and with its labels, scaled to unit variance."""

    covariance: Covariance
    cross_D: Array
    mean: float
    deviation: float
    feature_mean_D: Array
