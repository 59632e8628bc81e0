"""Find out what the columns of a table contain.

Shapes: R rows of a chunk.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice

import numpy as np

from trainer.data.format.specs import LARGEST
from trainer.data.format.words import MISSING_WORDS, parse_number
from trainer.data.sources.tables.rows import Row
from trainer.data.sources.tables.split_column import propose_mapping
from trainer.data.sources.tables.table_file import TableFile
from trainer.errors import UserError

CHUNK_ROWS = 4096

MAX_WORDS = 20
"""Different cells that are not numbers, in a column of numbers. With more of them, it is a column of texts."""

BOOLEANS = {"True": 1.0, "TRUE": 1.0, "true": 1.0, "False": 0.0, "FALSE": 0.0, "false": 0.0}
"""Features that are written as words, for instance by pandas' get_dummies."""


class Survey:
    """The content of one column.

    Args:
        classes: always keep all distinct values; by default, only while the column may be a classification.
        booleans: whether the words of BOOLEANS are numbers, as in features, or texts, as in classes.

    Attributes:
        values: its distinct values.
        complete: whether `values` has all of them; not where numbers that are not whole came first.
        labelled: number of cells with a value, in all splits.
        text: line and cell of the first value that is not a number up to LARGEST, or None.
        words: distinct values that are not, in the order of the file; of more than MAX_WORDS, one more than that.
        numbers: number of cells that are numbers, in all splits, as long as `words` has them all.
        whole: whether all numbers before that are whole.
        count: number of numbers in the train split.
        mean: mean over the train split.
        counts: of each distinct cell in the train split, if `classes`.
        varies: whether the train split has two different cells.
    """

    def __init__(self, *, classes: bool, booleans: bool) -> None:
        self._classes, self._booleans = classes, booleans
        self.values: set[str] = set()
        self.complete = True
        self.labelled = 0
        self.text: tuple[int, str] | None = None
        self.words: list[str] = []
        self.numbers = 0
        self.whole = True
        self.count = 0
        self.mean = 0.0
        self.counts: Counter[str] = Counter()
        self.varies = False
        self._first: str | None = None
        self._squares = 0.0

    @property
    def std(self) -> float:
        """Standard deviation over the train split; 1 if it is too small for float32."""
        found = math.sqrt(self._squares / self.count) if self.count else 0.0
        return found if found >= 1 / LARGEST else 1.0

    @property
    def is_empty(self) -> bool:
        """Whether the train split has no value."""
        return self._first is None

    def add(self, cells: Sequence[str], rows: Sequence[Row], train_R: np.ndarray) -> None:
        """Add the cells of more rows."""
        distinct = set(cells) - MISSING_WORDS
        if self._classes or not self.varies:
            self._add_train([cell for cell, is_train in zip(cells, train_R, strict=True) if is_train])
        if self._classes or self.whole or self.text:
            self.values |= distinct
        else:
            self.complete = False
        self.labelled += len(cells) - sum(map(MISSING_WORDS.__contains__, cells))
        if len(self.words) > MAX_WORDS:
            return
        numbers = {cell: value for cell in distinct if (value := self._parse(cell)) is not None}
        only_numbers = not self.text
        if len(numbers) < len(distinct):
            self._add_words([row.line for row in rows], cells, distinct - numbers.keys())
        numbers_R = np.array([numbers.get(cell, math.nan) for cell in cells])
        known_R = ~np.isnan(numbers_R)
        self.numbers += int(known_R.sum())
        if only_numbers:
            self.whole &= bool((numbers_R[known_R] == np.round(numbers_R[known_R])).all())
        if not self.text:
            self._add_moments(numbers_R[known_R & train_R])

    def _add_words(self, lines_R: Sequence[int], cells: Sequence[str], words: Collection[str]) -> None:
        """Keep the first MAX_WORDS + 1 different words, and where the first of them is."""
        found = {cell: line for line, cell in zip(reversed(lines_R), reversed(cells), strict=True) if cell in words}
        for cell, line in sorted(found.items(), key=lambda item: item[1]):
            self.text = self.text or (line, cell)
            if cell not in self.words and len(self.words) <= MAX_WORDS:
                self.words.append(cell)

    def _parse(self, cell: str) -> float | None:
        """Return the value of a cell; None if it is no number up to LARGEST."""
        return BOOLEANS[cell] if self._booleans and cell in BOOLEANS else parse_number(cell)

    def _add_train(self, cells: Sequence[str]) -> None:
        known = [cell for cell in cells if cell not in MISSING_WORDS]
        if known and self._first is None:
            self._first = known[0]
        self.varies = self.varies or any(cell != self._first for cell in known)
        if self._classes:
            self.counts.update(known)

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
    file: TableFile, features: Iterable[int], targets: Iterable[int], classes: Collection[int]
) -> tuple[dict[int, Survey], list[str]]:
    """Survey columns in one pass over a file.

    Args:
        file: the file.
        features: numbers of the columns to predict from.
        targets: numbers of the columns to predict.
        classes: those of them whose distinct cells are all kept.

    Returns:
        A survey of each column, and the splits, `train` and `test` first.

    Raises:
        UserError: no row is in the `train` split; or as `TableFile`.
    """
    found = {column: Survey(classes=column in classes, booleans=True) for column in features}
    found |= {column: Survey(classes=column in classes, booleans=False) for column in targets}
    splits: dict[str, None] = {}
    for rows in _chunks(iter(file)):
        names = [file.split(row) for row in rows]
        splits |= dict.fromkeys(names)
        train_R = np.array([name == "train" for name in names])
        for column, seen in found.items():
            seen.add([row.cells[column] for row in rows], rows, train_R)
    if "train" not in splits:
        names = list(splits)[:5]
        if file.split_column is None:
            raise UserError(
                f"{file.path}: the hash that chooses the split of each row puts none into 'train', as the file has so "
                "few.\nName a column with the split of each row: --split COLUMN"
            )
        raise UserError(
            f"{file.path} has no row of the split 'train'; its splits: {', '.join(names)}.\n"
            f"Say what they mean, such as: --split COLUMN {propose_mapping(names)}"
        )
    return found, sorted(splits, key=lambda name: (name != "train", name != "test", name))


@lru_cache(maxsize=1 << 16)
def number(cell: str) -> float:
    """Return the value of a cell of a feature; NaN if it is missing."""
    if cell in MISSING_WORDS:
        return math.nan
    return BOOLEANS[cell] if cell in BOOLEANS else float(cell)


def whole(cell: str) -> int:
    """Return the value of a cell that is a whole number, such as `3` or `3.0`."""
    try:
        return int(cell)
    except ValueError:
        return int(float(cell))


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while chunk := list(islice(rows, CHUNK_ROWS)):
        yield chunk
