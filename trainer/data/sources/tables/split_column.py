"""The column that names the split of each row: which one it may be, and what its cells may mean."""

import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from trainer.data.format.manifest import FILE_NAME
from trainer.data.sources.tables.rows import Row
from trainer.errors import UserError
from trainer.terminal import Terminal

NAMES = {"split", "splits", "data_split", "set", "subset", "fold", "part", "partition", "usage", "phase"}
"""Common names of that column, in lower case."""

READ = ("train", "val", "test")
"""The splits that training and its evaluations read."""

LOOKED_AT = 1000
"""Rows in which a column is looked for that holds the names of splits."""

_MEANINGS = {"train": "train", "val": "val", "dev": "val", "test": "test", "eval": "test", "hold": "test"}
"""First letters of a cell, in lower case -> the split that it means."""


def likely_splits(columns: Sequence[str], rows: Iterable[Row]) -> list[str]:
    """Return the columns that may name the split of each row, by their cells in some rows, or by their name."""
    cells = list(zip(*(row.cells for row in rows), strict=True)) or [()] * len(columns)
    by_cells = [name for name, found in zip(columns, cells, strict=True) if _name_splits(found)]
    return by_cells or [name for name in columns if name.lower() in NAMES]


def propose_mapping(names: Sequence[str]) -> str:
    """Return what the cells of a split column may mean, as --split takes it: `0=train,1=val`."""
    meant = {name: split for name in names if (split := _meaning(name))}
    others = iter([split for split in READ if split not in meant.values()])
    found = ((name, meant.get(name) or next(others, None)) for name in names)
    return ",".join(f"{name}={split}" for name, split in found if split)


def propose_split(
    path: Path, columns: Sequence[str], values: Mapping[int, Collection[str]], ignored: Collection[int]
) -> None:
    """Propose to split the rows by a column that may name their splits. Print it if the column is not used.

    Args:
        path: the file, for messages.
        columns: names of all columns.
        values: column that is predicted, or predicted from -> its distinct cells.
        ignored: columns that the user left out.

    Raises:
        UserError: the column is used, and holds names of splits.
    """
    for column, name in enumerate(columns):
        proposal = f"If it names the split of each row, add --split {name}"
        if column in ignored:
            continue
        if column not in values:
            if name.lower() in NAMES:
                Terminal(soft_wrap=True).print(f"column {name!r} is not used. {proposal}")
        elif _name_splits(values[column]) or (name.lower() in NAMES and "train" in values[column]):
            shown = sorted(values[column])
            if propose_mapping(shown) != ",".join(f"{cell}={cell}" for cell in shown):
                proposal += f" {propose_mapping(shown)}"
            raise UserError(
                f"{path}: column {name!r} has the values {', '.join(shown[:5])}. {proposal}; else leave it out with "
                f"--ignore {name}."
            )


def review_splits(path: Path, splits: Sequence[str], expected: Iterable[str]) -> None:
    """Print which of the expected splits have no row, and which splits are not read though their names say so.

    Args:
        path: the file, for messages.
        splits: the splits of the rows.
        expected: the splits that the user may count on.

    Raises:
        UserError: the name of a split cannot be that of files.
    """
    proposal = f"--split COLUMN {shlex.quote(propose_mapping(splits))}"
    if unusable := [split for split in splits if not re.fullmatch(FILE_NAME, split)]:
        raise UserError(
            f"{path}: expected letters, digits, '.', '_' and '-' in the name of a split, found {unusable[0][:40]!r}.\n"
            f"Say what the cells mean, such as: {proposal}"
        )
    if absent := [split for split in dict.fromkeys(expected) if split not in splits]:
        Terminal(soft_wrap=True).print(
            f"no row is in the split {' or '.join(map(repr, absent))}; the splits of the rows: {', '.join(splits)}"
        )
    if unread := [split for split in splits if split not in READ and _meaning(split)]:
        Terminal(soft_wrap=True).print(
            f"training reads the splits {', '.join(READ)}, and not {', '.join(map(repr, unread))}. If these mean the "
            f"same, type: {proposal}"
        )


def _name_splits(values: Collection[str]) -> bool:
    """Return whether the values are names of splits: of one for training, and of another one."""
    found = {_meaning(value) for value in values if value}
    return "train" in found and len(found) > 1 and None not in found


def _meaning(cell: str) -> str | None:
    return next((split for start, split in _MEANINGS.items() if cell.lower().startswith(start)), None)
