"""Find out how a text table is written: its encoding, its separator, and the lines before its header."""

import codecs
import csv
import io
import re
import shlex
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from trainer.errors import UserError

HEAD_BYTES = 1 << 20
"""Number of bytes that are read to decide."""

CHECKED_ROWS = 6
"""The header and the first rows, which must have as many cells each."""

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}

_OTHER_FILES = {
    b"PK\x03\x04": "an Excel file or a zip archive. Save the table as CSV, or unpack it",
    b"\xd0\xcf\x11\xe0": "an Excel file. Save the table as CSV",
    b"\x1f\x8b": "packed by gzip. Give it a name that ends in .csv.gz",
    b"[{": "JSON. Save the table as CSV",
    b'{"': "JSON. Save the table as CSV",
    b"<!": "HTML. Save the table as CSV",
    b"<html": "HTML. Save the table as CSV",
    b"<?xml": "XML. Save the table as CSV",
    b"ARROW1": "Feather or Arrow. Save the table as CSV or Parquet",
    b"\x89HDF": "HDF5. Save the table as CSV or Parquet",
    b"PAR1": "Parquet. Give it a name that ends in .parquet",
}
"""First bytes of files that are often given the name of a table -> what they are, and what to do."""


class Layout(NamedTuple):
    """The way in which a table is written.

    Attributes:
        encoding: as Python calls it.
        separator: of the cells.
        skipped: lines before the header.
        said: what was decided that the name of the file does not say, one sentence each.
    """

    encoding: str
    separator: str
    skipped: int
    said: Sequence[str]


def find_layout(content: BinaryIO, path: Path, separator: str) -> Layout:
    """Find out how a table is written.

    Args:
        content: the start of the file, unpacked.
        path: its path, for error messages.
        separator: the one that its name says.

    Raises:
        UserError: it is another kind of file, or its header has no separator, or several.
    """
    head = content.read(HEAD_BYTES)
    for start, what in _OTHER_FILES.items():
        if head.startswith(start):
            raise UserError(f"{path} is {what}.")
    encoding, said = "utf-8-sig", list[str]()
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
        said.append("it is read as UTF-16, as its first bytes say")
    elif head.count(0) > len(head) / 4:
        order = "UTF-16LE" if head[1:2] == b"\0" else "UTF-16BE"
        raise UserError(f"{path} is not text in UTF-8; it looks like {order}. Type: {convert(path, order)}")
    # Bytes that are not of the encoding are an error where the rows are read, with its line.
    text = codecs.getincrementaldecoder(encoding)(errors="replace").decode(head)
    lines = list(io.StringIO(text, newline=""))
    if lines and (named := re.fullmatch(r'"?sep=(.)"?', lines[0].rstrip("\r\n"))):  # as Excel writes it
        return Layout(encoding, named[1], 1, [*said, f"its first line names the separator: {named[1]!r}"])
    skipped = _num_comments(lines)
    found = _find_separator(lines[skipped:], f"{path}:{skipped + 1}", separator)
    if skipped and _is_header(lines[skipped - 1], lines[skipped:], found):
        skipped -= 1
    if found != separator:
        said.append(f"its cells are separated by {SEPARATORS[found]}, as its header says")
    if skipped:
        said.append(
            f"its first {skipped} lines, which begin with #, are left out"
            if skipped > 1
            else "its first line, which begins with #, is left out"
        )
    return Layout(encoding, found, skipped, said)


def convert(path: Path, encoding: str) -> str:
    """Return the command that writes a file anew in UTF-8."""
    new = shlex.quote(f"utf8-{path.name.removesuffix('.gz')}")
    read = f"gzip -dc {shlex.quote(str(path))} | iconv" if path.suffix.lower() == ".gz" else "iconv"
    last = "" if path.suffix.lower() == ".gz" else f" {shlex.quote(str(path))}"
    return f"{read} -f {encoding} -t UTF-8{last} > {new}"


def _num_comments(lines: Sequence[str]) -> int:
    """Return the number of lines before the first one that is neither a comment nor empty; 0 if there is none."""
    first = next((number for number, line in enumerate(lines) if line.strip() and not line.startswith("#")), 0)
    return first if any(line.startswith("#") for line in lines[:first]) else 0


def _is_header(line: str, rows: Sequence[str], separator: str) -> bool:
    """Return whether a line above the first row, such as `#id,x,y`, names the columns."""
    return line.startswith("#") and len(_cells([line], separator, 1)[0]) == len(_cells(rows, separator, 1)[0])


def _find_separator(lines: Sequence[str], where: str, usual: str) -> str:
    """Return the usual separator if the header has it, else the only one that the header has."""
    rows = {mark: _cells(lines, mark, CHECKED_ROWS) for mark in SEPARATORS}
    in_header = [mark for mark, found in rows.items() if len(found[0]) > 1]
    fitting = [mark for mark in in_header if len({len(cells) for cells in rows[mark]}) == 1]
    for marks in (fitting, in_header):
        if usual in marks:
            return usual
        if len(marks) == 1:
            return marks[0]
        if marks:
            names = " or ".join(SEPARATORS[mark] for mark in marks)
            raise UserError(f"{where}: are the cells separated by {names}? Write the table with {SEPARATORS[usual]}.")
    header = "".join(lines[:1]).strip()
    if " " in header:
        raise UserError(
            f"{where}: expected the names of the columns, separated by commas, semicolons or tabs, found "
            f"{header[:60]!r}. Write the table with {SEPARATORS[usual]}."
        )
    return usual


def _cells(lines: Sequence[str], separator: str, count: int) -> list[list[str]]:
    """Return the cells of the first rows; one empty row if they are not separated so."""
    try:
        rows = csv.reader(lines, strict=True, delimiter=separator)
        return list(islice((row for row in rows if row), count)) or [[]]
    except csv.Error:
        return [[]]
