"""A table on the disk: its columns, its rows, and the split of each row."""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from trainer.data.format.specs import check_name
from trainer.data.sources.tables.missing import MissingCells
from trainer.data.sources.tables.options import BY_HASH, TEST_FRACTION, SplitBy
from trainer.data.sources.tables.rows import Row, read_rows
from trainer.data.sources.tables.split_column import LOOKED_AT, likely_splits
from trainer.errors import UserError, did_you_mean
from trainer.terminal import Terminal

_INDEX = re.compile(r"Unnamed: \d+")
"""The name that pandas gives to a column without one, which is the index that it wrote before."""


class TableFile:
    """A table in one of `rows.FORMATS`; iterate over its rows any number of times.

    Args:
        path: the file.
        split: how the rows are split.
        missing: (column or pattern, cell) pairs: such cells of these columns become empty.
        id_column: the column whose cells are the names of the rows. None: a row's name is its number in the file, from
            0 for the first row below the header, as pandas numbers them.

    Attributes:
        path: the file.
        columns: names of all columns, in order.
        indexes: numbers of the columns that pandas wrote as the index, or that have no name. No pattern matches them.
        names_column: number of the first other column, which names files, if anything does.
        split_column: number of the column of splits, or None.
        id_column: number of the column of names, or None.
        missing: the cells that mean a missing value.
        made_by: its name and the options that were given, for the manifest.

    Raises:
        UserError: there is no such file, no header, a column without a name, two of the same name, or no column
            of a name that was given; while iterating: a row is not as long as the header, or there are no rows.
    """

    def __init__(
        self,
        path: Path,
        split: SplitBy = BY_HASH,
        missing: Sequence[tuple[str, str]] = (),
        id_column: str | None = None,
    ) -> None:
        self.path = path
        self.made_by: dict[str, Any] = {"file": path.name, "split_column": split.column}
        self.made_by |= {"split_names": dict(split.names)} if split.names else {}
        self.made_by |= {"val_fraction": split.val_fraction} if split.val_fraction else {}
        self.made_by |= {"missing": [f"{column}={cell}" for column, cell in missing]} if missing else {}
        self.made_by |= {"id_column": id_column} if id_column else {}
        self.columns = next(read_rows(path, Terminal(soft_wrap=True).print), Row(0, [])).cells
        if not self.columns:
            raise UserError(f"{path} is empty: expected a header and rows.")
        for place in {0, len(self.columns) - 1} if len(self.columns) > 1 else ():
            # The index that pandas wrote, or a separator at the end of each line.
            self.columns[place] = self.columns[place] or f"Unnamed: {place}"
        if wrong := [name for name, count in Counter(self.columns).items() if count > 1 or not name]:
            raise UserError(
                f"{path}:1: expected a different name for each column, found several times or empty: {wrong[:5]}."
            )
        for name in self.columns:
            try:
                check_name(name)
            except ValueError as error:
                raise UserError(f"{path}:1: {error}.\nIs it a table with a header? Rename the column.") from None
        self.indexes = {number for number, name in enumerate(self.columns) if _INDEX.fullmatch(name)}
        self.names_column = next((n for n in range(len(self.columns)) if n not in self.indexes), 0)
        self.id_column = None if id_column is None else self._find_one("--id", id_column)
        self._split = split
        self._assigned: Mapping[str, str] = {}
        unmatched = [] if self.id_column is None else [self.id_column]
        self.missing = MissingCells(missing, partial(self.find, without=unmatched))
        self.split_column = None if split.column is None else self._find_split(split.column)

    def __iter__(self) -> Iterator[Row]:
        rows = read_rows(self.path)
        next(rows)
        row = None
        for number, row in enumerate(rows):
            if len(row.cells) != len(self.columns):
                raise UserError(
                    f"{self.path}:{row.line}: expected {len(self.columns)} cells, as the header has, "
                    f"found {len(row.cells)}."
                )
            self.missing.clear(row.cells)
            yield Row(row.line, row.cells, str(number) if self.id_column is None else row.cells[self.id_column])
        if row is None:
            raise UserError(f"{self.path} has a header, but no rows.")

    def find(self, names: Sequence[str], without: Collection[int] = ()) -> list[int]:
        """Return the numbers of the columns that match these names, in the order of the file; `*` matches anything.

        Args:
            names: names or patterns.
            without: columns that no pattern matches; a name that is one of them is found.

        Raises:
            UserError: some names match no column; the message has them all.
        """
        found, unknown = set[int](), list[str]()
        for name in names:
            if name in self.columns:
                found.add(self.columns.index(name))
                continue
            matching = {
                number
                for number, column in enumerate(self.columns)
                if any(mark in name for mark in "*?[") and fnmatchcase(column, name)
            }
            if not matching:
                unknown.append(name)
            found |= matching - self.indexes - set(without)
        if unknown:
            lines = [f"{self.path} has no column {name!r}{did_you_mean(name, self.columns)}" for name in unknown[:20]]
            raise UserError(
                "\n".join(lines)
                + f"\nIts columns: {', '.join(self.columns[:20])}{', ...' if len(self.columns) > 20 else ''}."
            )
        return sorted(found)

    def _find_one(self, option: str, name: str) -> int:
        found = self.find([name])
        if len(found) != 1:
            matching = ", ".join(self.columns[column] for column in found[:5]) or "none"
            raise UserError(f"{self.path}: {option} {name!r} should name one column, found {matching}.")
        return found[0]

    def _find_split(self, name: str) -> int:
        try:
            return self._find_one("--split", name)
        except UserError as error:
            likely = likely_splits(self.columns, islice(self, LOOKED_AT))
            proposal = f"\nDoes {likely[0]!r} name the split of each row? Type: --split {likely[0]}" if likely else ""
            raise UserError(f"{error}{proposal}") from None

    def check_ids(self) -> None:
        """Refuse rows without a name, or with the name of another row. Without a column of names, there are none."""
        if self.id_column is None:
            return
        column, lines = self.columns[self.id_column], dict[str, int]()
        for row in self:
            if not row.name:
                raise UserError(f"{self.path}:{row.line}: column {column!r}, which --id names, is empty.")
            if (line := lines.setdefault(row.name, row.line)) != row.line:
                raise UserError(
                    f"{self.path}:{row.line}: column {column!r}, which --id names, has {row.name[:40]!r} as in line "
                    f"{line}: expected another name for each row.\nWithout --id, the number of a row is its name."
                )

    def assign(self, splits: Mapping[str, str]) -> None:
        """Set the split of some rows, which have these texts in `names_column`."""
        self._assigned = splits

    def split(self, row: Row) -> str:
        """Return the split of a row.

        Raises:
            UserError: its cell in the split column is empty, or none of the names that were given.
        """
        if self._assigned and row.cells[self.names_column] in self._assigned:
            return self._assigned[row.cells[self.names_column]]
        split = self._hashed(row, TEST_FRACTION, "test", b"") if self.split_column is None else self._named(row)
        return self._hashed(row, self._split.val_fraction, "val", b"val") if split == "train" else split

    def _hashed(self, row: Row, fraction: float, split: str, person: bytes) -> str:
        """Return `split` for a fraction of all rows, and `train` for the others. Hashes for two persons differ."""
        if not fraction:
            return "train"
        cells = [cell for number, cell in enumerate(row.cells) if number not in self.indexes]
        digest = hashlib.blake2b("\x1f".join(cells).encode(), digest_size=8, person=person).digest()
        return split if int.from_bytes(digest) < fraction * 2**64 else "train"

    def _named(self, row: Row) -> str:
        assert self.split_column is not None, "the caller has asked"
        name, column = row.cells[self.split_column], self.columns[self.split_column]
        if not name:
            raise UserError(f"{self.path}:{row.line}: column {column!r} is empty; expected a split.")
        if self._split.names is None:
            return name
        if name not in self._split.names:
            raise UserError(
                f"{self.path}:{row.line}: column {column!r} has {name[:40]!r}, for which --split names no split: "
                f"{', '.join(f'{cell}={split}' for cell, split in self._split.names.items())}."
            )
        return self._split.names[name]

    def of_split(self, split: str) -> Iterator[Row]:
        """Return the rows of one split, in order."""
        return (row for row in self if self.split(row) == split)
