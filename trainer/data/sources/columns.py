"""Find out what the columns of a CSV file contain, and turn columns of targets into tasks.

Shapes: R rows of a chunk.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np

from trainer.data.format.specs import LARGEST, ClassificationSpec, RegressionSpec, ScalarTaskSpec, refusing
from trainer.data.sources.csv_file import CsvFile, Row
from trainer.errors import UserError, did_you_mean

EMPTY = frozenset({"", "NA", "NaN", "nan", "null"})
"""Cells that count as missing values."""

MAX_CLASSES = 100
"""A column with more distinct texts or whole numbers is a classification only if the user says so."""

KINDS = ("classification", "regression")

CHUNK_ROWS = 4096


class Survey:
    """The content of one column.

    Args:
        classes: always keep all distinct cells; by default, only while the column may be a classification.

    Attributes:
        values: its distinct cells.
        text: line and cell of the first value that is not a number up to LARGEST, or None.
        whole: whether all numbers before that are whole.
        count: number of values in the train split.
        mean: mean over the train split.
    """

    def __init__(self, *, classes: bool) -> None:
        self._classes = classes
        self.values: set[str] = set()
        self.text: tuple[int, str] | None = None
        self.whole = True
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0

    @property
    def std(self) -> float:
        """Standard deviation over the train split; 1 if it is too small for float32."""
        found = math.sqrt(self._squares / self.count) if self.count else 0.0
        return found if found >= 1 / LARGEST else 1.0

    def add(self, cells: Sequence[str], rows: Sequence[Row], train_R: np.ndarray) -> None:
        """Add the cells of more rows."""
        if self._classes or self.whole:
            self.values.update(cell for cell in cells if cell not in EMPTY)
        if self.text:
            return
        try:
            numbers_R = _numbers(cells)
        except ValueError:
            self.text = next((row.line, cell) for row, cell in zip(rows, cells, strict=True) if not _is_number(cell))
            numbers_R = _numbers([cell for cell in cells if _is_number(cell)])
        known_R = ~np.isnan(numbers_R)
        self.whole &= bool((numbers_R[known_R] == np.round(numbers_R[known_R])).all())
        if not self.text:
            self._add_moments(numbers_R[known_R & train_R])

    def _add_moments(self, numbers_R: np.ndarray) -> None:
        # Chan, Golub & LeVeque 1983: moments of parts are combined without a second pass.
        if not numbers_R.size:
            return
        mean, total = float(numbers_R.mean()), self.count + numbers_R.size
        between = (mean - self.mean) ** 2 * self.count * numbers_R.size / total
        self._squares += float(((numbers_R - mean) ** 2).sum()) + between
        self.mean += (mean - self.mean) * numbers_R.size / total
        self.count = total


def survey(
    file: CsvFile, features: Iterable[int], targets: Iterable[int], kinds: Mapping[str, str]
) -> tuple[dict[int, Survey], list[str]]:
    """Survey all columns in one pass over a file.

    Args:
        file: the file.
        features: numbers of the columns to predict from.
        targets: numbers of the columns to predict.
        kinds: column -> kind, for the targets whose kind the user has given.

    Returns:
        A survey of each column, and the splits, `train` and `test` first.

    Raises:
        UserError: no row is in the `train` split; or as `CsvFile`.
    """
    found = {column: Survey(classes=False) for column in features}
    found |= {column: Survey(classes=kinds.get(file.columns[column]) == "classification") for column in targets}
    splits: dict[str, None] = {}
    for rows in _chunks(iter(file)):
        names = [file.split(row) for row in rows]
        splits |= dict.fromkeys(names)
        train_R = np.array([name == "train" for name in names])
        for column, seen in found.items():
            seen.add([row.cells[column] for row in rows], rows, train_R)
    if "train" not in splits:
        raise UserError(f"{file.path} has no row of the split 'train'; its splits: {', '.join(splits)}.")
    return found, sorted(splits, key=lambda name: (name != "train", name != "test", name))


def build_tasks(
    file: CsvFile, targets: Mapping[int, Survey], kinds: Mapping[str, str], units: Mapping[str, str]
) -> list[ScalarTaskSpec]:
    """Make a task of every column of targets.

    Texts and whole numbers give a classification, other numbers a regression; `kinds` overrides this.

    Raises:
        UserError: a kind or unit belongs to no target or does not fit its cells, or the kind of a column is unclear.
    """
    names = [file.columns[column] for column in targets]
    for option, given in (("--kinds", kinds), ("--units", units)):
        for name in given:
            if name not in names:
                raise UserError(f"{option} names {name!r}, which is not a target{did_you_mean(name, names)}")
    tasks: list[ScalarTaskSpec] = []
    for name, seen in zip(names, targets.values(), strict=True):
        where, unit = f"{file.path}: column {name!r}", units.get(name)
        with refusing(f"{where} cannot be a task"):
            if _kind(where, name, seen, kinds.get(name)) == "regression":
                tasks.append(_regression(where, name, seen, unit))
            elif unit is not None:
                raise UserError(f"{where} is a classification: its error is a percentage, not in {unit}.")
            else:
                tasks.append(_classification(where, name, seen))
    return tasks


def label_reader(task: ScalarTaskSpec) -> Callable[[str], int | float | None]:
    """Return a function that turns a cell of the task's column into a label."""
    if isinstance(task, RegressionSpec):
        return lambda cell: None if cell in EMPTY else float(cell)
    numbers = {name: number for number, name in enumerate(task.classes)}

    def read(cell: str) -> int | None:
        if cell in EMPTY:
            return None
        return numbers[cell] if cell in numbers else numbers[str(_whole(cell))]

    return read


def number(cell: str) -> float:
    """Return the value of a cell; NaN if it is missing."""
    return math.nan if cell in EMPTY else float(cell)


def _kind(where: str, name: str, seen: Survey, given: str | None) -> str:
    if given is not None:
        if given not in KINDS:
            raise UserError(f"--kinds {name}={given}: expected one of {', '.join(KINDS)}.")
        return given
    if not seen.whole:
        return "regression"
    if len(seen.values) > MAX_CLASSES:
        values = f"texts, such as {seen.text[1]!r} in line {seen.text[0]}" if seen.text else "whole numbers"
        raise UserError(
            f"{where} has more than {MAX_CLASSES} different {values}: are they classes or a quantity?\n"
            f"Choose with --kinds {name}=classification or --kinds {name}=regression."
        )
    return "classification"


def _classification(where: str, name: str, seen: Survey) -> ClassificationSpec:
    if seen.whole and not seen.text:
        classes = [str(number) for number in sorted(set(map(_whole, seen.values)))]
    else:
        classes = sorted(seen.values)
    if len(classes) < 2:
        raise UserError(f"{where}: a classification needs two classes or more, found {classes or 'no value at all'}.")
    return ClassificationSpec(name=name, classes=tuple(classes))


def _regression(where: str, name: str, seen: Survey, unit: str | None) -> RegressionSpec:
    if seen.text:
        line, cell = seen.text
        raise UserError(f"{where}, line {line}: expected a finite number of at most {LARGEST:g}, found {cell[:40]!r}.")
    if not seen.count:
        raise UserError(f"{where} has no value in the train split.")
    return RegressionSpec(name=name, unit=unit, mean=seen.mean, std=seen.std)


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while chunk := list(islice(rows, CHUNK_ROWS)):
        yield chunk


def _numbers(cells: Sequence[str]) -> np.ndarray:
    known_R = np.array([cell not in EMPTY for cell in cells], bool)
    numbers_R = np.full(len(cells), np.nan)
    numbers_R[known_R] = [float(cell) for cell in cells if cell not in EMPTY]
    if not (np.abs(numbers_R[known_R]) <= LARGEST).all():
        raise ValueError("not finite, or too large")
    return numbers_R


def _whole(cell: str) -> int:
    try:
        return int(cell)
    except ValueError:
        return int(float(cell))


def _is_number(cell: str) -> bool:
    try:
        return cell in EMPTY or abs(float(cell)) <= LARGEST
    except ValueError:
        return False
