"""Turn the columns to predict from into features: numbers as they are, categories as one column for each value.

Shapes: F features.
"""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from trainer.data.format.explain import refusing
from trainer.data.format.specs import LARGEST, FeaturesSpec
from trainer.data.sources.tables.alike import say_alike
from trainer.data.sources.tables.columns import MAX_WORDS, Survey, number
from trainer.data.sources.tables.kinds import is_written_number, missing_option
from trainer.data.sources.tables.rows import Row
from trainer.data.sources.tables.table_file import TableFile
from trainer.errors import UserError
from trainer.terminal import Terminal

MAX_CATEGORIES = 1000
"""Values of a category. A column with more would give as many features: it is an identifier, or free text."""

MAX_SHOWN = 20

MAX_ROUNDING = 0.05
"""Distance of two numbers of float32 in standard deviations of a feature, beyond which the user is told."""


class Features:
    """The features of a row.

    Args:
        file: the file.
        columns: column -> its survey, for the columns to predict from.
        categories: those of them that are categories: one feature for each value of the train split, 1 where the row
            has it and 0 elsewhere. All are missing where the cell is, or has a value that the train split lacks.

    Attributes:
        spec: of the features; a category's are named COLUMN=VALUE.

    Raises:
        UserError: columns that are no categories hold texts, or a category has too many values; the message names
            every such column.
    """

    def __init__(self, file: TableFile, columns: Mapping[int, Survey], categories: Collection[int]) -> None:
        _refuse_texts(file, {column: seen for column, seen in columns.items() if column not in categories})
        _say_coarse(file, {column: seen for column, seen in columns.items() if column not in categories})
        self._values = {column: sorted(columns[column].counts) for column in columns if column in categories}
        self._columns = list(columns)
        if many := [file.columns[column] for column, values in self._values.items() if len(values) > MAX_CATEGORIES]:
            raise UserError(
                f"{file.path}: more than {MAX_CATEGORIES} different values in categories: {_listed(many)}.\n"
                f"Leave them out with --ignore {','.join(many[:MAX_SHOWN])}"
            )
        for column, values in self._values.items():
            say_alike(file.columns[column], values)
        names: list[str] = []
        moments: list[tuple[float, float]] = []
        for column, seen in columns.items():
            if column not in self._values:
                names.append(file.columns[column])
                moments.append((seen.mean, seen.std))
                continue
            total = seen.counts.total()
            for value in self._values[column]:
                share = seen.counts[value] / total
                names.append(f"{file.columns[column]}={value}")
                moments.append((share, math.sqrt(share * (1 - share)) or 1.0))
        with refusing(f"{file.path}: its columns cannot be features"):
            self.spec = FeaturesSpec(
                names=tuple(names), mean=tuple(mean for mean, _ in moments), std=tuple(std for _, std in moments)
            )

    def read(self, row: Row) -> np.ndarray:
        """Return the features of a row, float32 (F,); NaN where they are missing."""
        if not self._values:
            return np.array([number(cell) for cell in map(row.cells.__getitem__, self._columns)], np.float32)
        found: list[float] = []
        for column in self._columns:
            cell, values = row.cells[column], self._values.get(column)
            if values is None:
                found.append(number(cell))
            else:
                found.extend([float(cell == value) for value in values] if cell in values else [math.nan] * len(values))
        return np.array(found, np.float32)


def _refuse_texts(file: TableFile, columns: Mapping[int, Survey]) -> None:
    wrong = {file.columns[column]: (seen, *seen.text) for column, seen in columns.items() if seen.text}
    if not wrong:
        return
    lines = [
        f"{file.path}:{line}: feature {name!r} should be a finite number of at most {LARGEST:g}, found {cell[:40]!r}."
        for name, (_, line, cell) in wrong.items()
    ]
    written = [cell for _, _, cell in wrong.values() if is_written_number(cell)]
    point = (
        "\nWrite numbers with a decimal point, and without separators of thousands or units: "
        f"{written[0][:40]!r} is read as a text."
        if written
        else ""
    )
    # Columns of numbers but for a few words.
    missing = [
        f"\nIf {', '.join(repr(word[:40]) for word in seen.words)} in {name!r} are missing values, add {option}"
        for name, (seen, _, _) in wrong.items()
        if len(seen.words) <= MAX_WORDS
        and seen.numbers > len(seen.words)
        and (option := missing_option(name, seen.words))
    ]
    more = f"\n... and {len(lines) - MAX_SHOWN} more columns" if len(lines) > MAX_SHOWN else ""
    names = ",".join(list(wrong)[:MAX_SHOWN])
    many = [name for name, (seen, _, _) in wrong.items() if len(seen.values) > MAX_CATEGORIES]
    few = ",".join([name for name in wrong if name not in many][:MAX_SHOWN])
    raise UserError(
        "\n".join(lines[:MAX_SHOWN])
        + f"{more}\nLeave the column{'s' if len(wrong) > 1 else ''} out with --ignore {names}, "
        + (f"use the values as categories with --categories {few}, " if few else "")
        + "or predict with --targets."
        + (f"\nMore than {MAX_CATEGORIES} values, too many for categories: {_listed(many)}." if many else "")
        + (" If one of them names the rows, add --id COLUMN." if many else "")
        + point
        + "".join(missing[:MAX_SHOWN])
    )


def _say_coarse(file: TableFile, columns: Mapping[int, Survey]) -> None:
    """Print the columns whose values are so far from 0 that float32 rounds their differences.

    Raises:
        UserError: no difference is left.
    """
    for column, seen in columns.items():
        step = float(np.spacing(np.float32(abs(seen.mean))))
        said = (
            f"feature {file.columns[column]!r} has a standard deviation of {seen.std:g} around {seen.mean:g}, where "
            f"float32 keeps steps of {step:g}. Subtract an offset from it first"
        )
        if seen.varies and step > seen.std:
            raise UserError(f"{file.path}: {said}, or leave it out with --ignore {file.columns[column]}.")
        if seen.varies and step > MAX_ROUNDING * seen.std:
            Terminal(soft_wrap=True).print(said)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:MAX_SHOWN])) + (", ..." if len(names) > MAX_SHOWN else "")
