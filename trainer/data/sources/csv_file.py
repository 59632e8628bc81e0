"""Read a CSV file with a header, row by row."""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from trainer.data.format.specs import check_name
from trainer.errors import UserError, did_you_mean
from trainer.files import open_regular

TEST_FRACTION = 0.2
"""Fraction of the rows in the test split, if there is no column that names the split."""


class Row(NamedTuple):
    """The cells of a row, without surrounding spaces, and the line that it ends on."""

    line: int
    cells: list[str]


class CsvFile:
    """A CSV file in UTF-8, with commas and a header; iterate over its rows any number of times.

    Args:
        path: the file.
        split_column: the column that names each row's split. None: TEST_FRACTION of the rows, chosen by a hash of all
            their cells, are `test` and the others `train`. This does not depend on the order of the rows, and equal
            rows are in the same split.

    Attributes:
        path: the file.
        columns: names of all columns, in order.

    Raises:
        UserError: there is no such file, no header, a column without a name, two of the same name, or no split column
            of that name; while iterating: a row is not as long as the header, or there are no rows.
    """

    def __init__(self, path: Path, split_column: str | None = None) -> None:
        self.path = path
        self.columns = next(self._read(), Row(0, [])).cells
        if not self.columns:
            raise UserError(f"{path} is empty: expected a header and rows.")
        if wrong := [name for name, count in Counter(self.columns).items() if count > 1 or not name]:
            raise UserError(
                f"{path}:1: expected a different name for each column, found several times or empty: {wrong[:5]}."
            )
        for name in self.columns:
            try:
                check_name(name)
            except ValueError as error:
                raise UserError(f"{path}:1: {error}.\nIs it a CSV file, with a header? Rename the column.") from None
        self._split_column = None if split_column is None else self.find([split_column])[0]

    def __iter__(self) -> Iterator[Row]:
        rows = self._read()
        next(rows)
        row = None
        for row in rows:
            if len(row.cells) != len(self.columns):
                raise UserError(
                    f"{self.path}:{row.line}: expected {len(self.columns)} cells, as the header has, "
                    f"found {len(row.cells)}."
                )
            yield row
        if row is None:
            raise UserError(f"{self.path} has a header, but no rows.")

    def find(self, names: Sequence[str]) -> list[int]:
        """Return the numbers of the columns that match these names, in the order of the file; `*` matches anything.

        Raises:
            UserError: a name matches no column.
        """
        found = set()
        for name in names:
            matching = [
                number
                for number, column in enumerate(self.columns)
                if column == name or ("*" in name and fnmatchcase(column, name))
            ]
            if not matching:
                raise UserError(
                    f"{self.path} has no column {name!r}{did_you_mean(name, self.columns)}\n"
                    f"Its columns: {', '.join(self.columns[:20])}{', ...' if len(self.columns) > 20 else ''}."
                )
            found.update(matching)
        return sorted(found)

    def split(self, row: Row) -> str:
        """Return the split of a row.

        Raises:
            UserError: its cell in the split column is empty.
        """
        if self._split_column is None:
            digest = hashlib.blake2b("\x1f".join(row.cells).encode(), digest_size=8).digest()
            return "test" if int.from_bytes(digest) < TEST_FRACTION * 2**64 else "train"
        name = row.cells[self._split_column]
        if not name:
            raise UserError(
                f"{self.path}:{row.line}: column {self.columns[self._split_column]!r} is empty; expected a split."
            )
        return name

    def of_split(self, split: str) -> Iterator[Row]:
        """Return the rows of one split, in order."""
        return (row for row in self if self.split(row) == split)

    def _read(self) -> Iterator[Row]:
        try:
            with io.TextIOWrapper(open_regular(self.path), encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file, strict=True)
                try:
                    for cells in reader:
                        if cells:
                            yield Row(reader.line_num, [cell.strip() for cell in cells])
                except (csv.Error, UnicodeDecodeError) as error:
                    raise UserError(f"{self.path}:{reader.line_num + 1}: not CSV in UTF-8: {error}.") from None
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}.") from None
