"""The options of `paretrain data table` and `paretrain data folder` about the columns of a table."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def add_file(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the file of the table."""
    parser.add_argument(
        "--csv",
        "--file",
        dest="csv",
        type=Path,
        required=True,
        metavar="FILE",
        help=f"{what}: .csv or .tsv in UTF-8, also .gz; .arff; or .parquet",
    )


def add_columns(parser: argparse.ArgumentParser, *, targets: str, required: bool) -> None:
    """Add what to predict, what to leave out, and how to split the rows."""
    parser.add_argument("--targets", type=names, action="extend", required=required, metavar="A,B*", help=targets)
    parser.add_argument(
        "--ignore",
        type=names,
        action="extend",
        default=[],
        metavar="A,B*",
        help="columns to leave out; * matches any text",
    )
    parser.add_argument(
        "--kinds",
        type=_pairs,
        action=_Mapping,
        default={},
        metavar="A*=KIND",
        help="classification or regression; the last pattern that matches counts",
    )
    parser.add_argument(
        "--units", type=_pairs, action=_Mapping, default={}, metavar="A*=UNIT", help="units of regression targets"
    )
    parser.add_argument(
        "--split",
        nargs="+",
        action=_Split,
        metavar=("COLUMN", "VALUE=SPLIT"),
        help="column with the split of each row, and which split its values mean, such as 0=train,1=val,2=test "
        "(default: a hash of the row puts a fifth in test)",
    )
    parser.add_argument(
        "--val",
        type=fraction,
        default=0.0,
        metavar="FRACTION",
        help="put this fraction of the train rows, such as 0.1, into the split val, chosen by a hash of the row",
    )
    parser.add_argument(
        "--missing",
        type=_pairs,
        action="extend",
        default=[],
        metavar="A*=CELL",
        help="cells that mean a missing value, such as age=unknown or '*=?', beside empty ones and pandas' words",
    )
    parser.add_argument(
        "--drop-empty",
        action="store_true",
        help="leave out columns that have no value, and targets that have a single class, in the train split",
    )


class _Mapping(argparse.Action):
    """Gathers the pairs of an option that may be repeated into one mapping."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        try:
            setattr(namespace, self.dest, _merged(getattr(namespace, self.dest), values))
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from None


def _merged(known: Mapping[str, str], pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return a mapping with more pairs; refuse a name with two values, of which one would be lost."""
    found = dict(known)
    for name, value in pairs:
        if found.setdefault(name, value) != value:
            raise argparse.ArgumentTypeError(f"{name!r} has two values, {found[name]!r} and {value!r}")
    return found


class _Split(argparse.Action):
    """Reads `COLUMN` or `COLUMN VALUE=SPLIT,VALUE=SPLIT`, and keeps the column and a mapping or None."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        column, *pairs = values
        try:
            names = _merged({}, [pair for text in pairs for pair in _pairs(text)])
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        namespace.split = column, names or None


def columns(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of `Columns` that `add_columns` asks for."""
    from trainer.data.sources.tables.options import SplitBy

    split_column, split_names = options.split or (None, None)
    return {
        "targets": options.targets or ["*"],
        "kinds": options.kinds,
        "units": options.units,
        "ignore": options.ignore,
        "split": SplitBy(split_column, split_names, options.val),
        "missing": options.missing,
        "drop_empty": options.drop_empty,
    }


def names(text: str) -> list[str]:
    """Read NAME,NAME."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"expected NAME,NAME, found {text!r}")
    return names


def _pairs(text: str) -> list[tuple[str, str]]:
    pairs = [pair.partition("=") for pair in names(text)]
    if not all(name and equals and value for name, equals, value in pairs):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE,NAME=VALUE, found {text!r}")
    return [(name, value) for name, _, value in pairs]


def fraction(text: str) -> float:
    """Read a number from 0 to 1 from the command line."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, found {text[:40]!r}")
    return value
