"""The column that names the split of each row: which one it may be, and what its cells may mean."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from trainer.data.sources.tables.rows import Row
from trainer.errors import UserError
from trainer.terminal import Terminal

NAMES = {"split", "splits", "data_split", "set", "subset", "fold", "part", "partition", "usage", "phase"}
"""Common names of that column, in lower case."""

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
    others = iter([split for split in ("train", "val", "test") if split not in meant.values()])
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


def say_absent(splits: Collection[str], expected: Iterable[str]) -> None:
    """Print which of the expected splits have no row."""
    absent = [split for split in dict.fromkeys(expected) if split not in splits]
    if absent:
        Terminal(soft_wrap=True).print(
            f"no row is in the split {' or '.join(map(repr, absent))}; the splits of the rows: {', '.join(splits)}"
        )


def _name_splits(values: Collection[str]) -> bool:
    """Return whether the values are names of splits: of one for training, and of another one."""
    found = {_meaning(value) for value in values if value}
    return "train" in found and len(found) > 1 and None not in found


def _meaning(cell: str) -> str | None:
    return next((split for start, split in _MEANINGS.items() if cell.lower().startswith(start)), None)
