"""The description of a table that the user gives: how its rows are split, and what its columns are for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

TEST_FRACTION = 0.2
"""Fraction of the rows in the test split, if there is no column that names the split."""


@dataclass(frozen=True)
class SplitBy:
    """The rule by which rows are split.

    Attributes:
        column: the column that names each row's split. None: TEST_FRACTION of the rows, chosen by a hash of all their
            cells, are `test` and the others `train`. This does not depend on the order of the rows, and equal rows are
            in the same split.
        names: cell of that column -> split. None: its cells are the splits.
        val_fraction: fraction of the train rows that are put into `val`, chosen by another hash of their cells.
    """

    column: str | None = None
    names: Mapping[str, str] | None = None
    val_fraction: float = 0.0

    @property
    def expected(self) -> list[str]:
        """The splits, beside `train`, that the user counts on."""
        return ["test", *(self.names or {}).values(), *(["val"] if self.val_fraction else [])]


BY_HASH = SplitBy()
"""The split where no column names it."""


@dataclass(frozen=True)
class Columns:
    """The columns to predict, those to leave out, and how the rows are split.

    A name of several columns is a pattern, in which `*` matches anything.

    Attributes:
        targets: names of the columns to predict.
        kinds: column or pattern -> `classification` or `regression`, to override what its cells suggest.
        units: column of a regression, or pattern -> unit of its error.
        ignore: names of columns to leave out, also of those that patterns of targets match.
        split: how the rows are split.
        missing: (column or pattern, cell) pairs: such cells count as missing values.
        drop_empty: leave out columns that have no value, and targets that have a single class, in the train split.
    """

    targets: Sequence[str] = ("*",)
    kinds: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    ignore: Sequence[str] = ()
    split: SplitBy = BY_HASH
    missing: Sequence[tuple[str, str]] = ()
    drop_empty: bool = False


@dataclass(frozen=True)
class TableColumns(Columns):
    """The columns of a table whose other columns are the inputs.

    Attributes:
        features: names of the columns to predict from. None: all that are neither targets nor ignored.
        categories: names of the features whose values become a feature each; a pattern matches columns of texts only.
        id: the column that names each row, which is then left out of features and targets; None: a row's name is its
            number in the file, from 0.
    """

    features: Sequence[str] | None = None
    categories: Sequence[str] = ()
    id: str | None = None
