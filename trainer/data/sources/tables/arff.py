"""Read ARFF, the format of Weka and mulan: attributes with their types, then rows, dense or sparse.

scipy.io.arff reads neither sparse rows nor texts, which is why this is our own. A missing value, `?`, becomes an empty
cell; a sparse row lists the cells that are not 0, and for a nominal attribute 0 means the first of its values.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainer.data.sources.tables.delimited import convert
from trainer.errors import UserError

_ATTRIBUTE = re.compile(r"""@attribute\s+('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\S+)\s+(.+)""", re.IGNORECASE)
_QUOTES = "'\""


def read_arff(text: io.TextIOWrapper, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the names of the attributes, then the cells of every row, each with the number of its line.

    Args:
        text: content of the file.
        path: its path, for error messages.

    Raises:
        UserError: a line is not ARFF.
    """
    names: list[str] = []
    defaults: list[str] = []
    in_data = False
    try:
        for line, content in enumerate(text, 1):
            stripped = content.strip()
            if not stripped or stripped.startswith("%"):
                continue
            if in_data:
                yield line, _row(stripped, defaults, f"{path}:{line}")
            elif stripped.lower().startswith("@data"):
                in_data = True
                yield line, names
            elif stripped.lower().startswith("@attribute"):
                name, default = _attribute(stripped, f"{path}:{line}")
                names.append(name)
                defaults.append(default)
            elif not stripped.lower().startswith("@relation"):
                raise UserError(f"{path}:{line}: expected @relation, @attribute or @data, found {stripped[:40]!r}.")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not ARFF in UTF-8: {error}.\n"
            f"If a program for Windows wrote it, type: {convert(path, 'WINDOWS-1252')}"
        ) from None
    if not in_data:
        raise UserError(f"{path}: not ARFF: it has no @data.")


def _attribute(line: str, where: str) -> tuple[str, str]:
    """Return an attribute's name, and the cell that a sparse row leaves out."""
    found = _ATTRIBUTE.fullmatch(line)
    if found is None:
        raise UserError(f"{where}: expected @attribute NAME TYPE, found {line[:60]!r}.")
    name, kind = _unquoted(found[1]), found[2].strip()
    if kind.startswith("{"):
        return name, _cells(kind.strip("{}"), where)[0]
    return name, "0"


def _row(line: str, defaults: Sequence[str], where: str) -> list[str]:
    if not line.startswith("{"):
        return ["" if cell == "?" else cell for cell in _cells(line, where)]
    row = list(defaults)
    for pair in _cells(line.strip("{}"), where):
        number, _, cell = pair.strip().partition(" ")
        if not number.isdecimal() or int(number) >= len(row):
            raise UserError(f"{where}: expected NUMBER VALUE with a number below {len(row)}, found {pair[:40]!r}.")
        cell = _unquoted(cell.strip())
        row[int(number)] = "" if cell == "?" else cell
    return row


def _cells(line: str, where: str) -> list[str]:
    """Split a line at its commas, or at tabs if it has no comma. Quotes are either of both."""
    if not any(quote in line for quote in _QUOTES):
        return [cell.strip() for cell in line.split("," if "," in line else "\t")] if line.strip() else []
    quote = min(_QUOTES, key=lambda mark: line.find(mark) if mark in line else len(line))
    try:
        (cells,) = csv.reader([line], quotechar=quote, escapechar="\\", skipinitialspace=True, strict=True)
    except (csv.Error, ValueError) as error:
        raise UserError(f"{where}: not a row of ARFF: {error}.") from None
    return [cell.strip() for cell in cells]


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] in _QUOTES and text[-1] == text[0]:
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    return text
