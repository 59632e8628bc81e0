"""Read the rows of a table as cells of text: CSV and TSV, packed by gzip or not, ARFF, and Parquet."""

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from trainer.data.sources.tables.arff import read_arff
from trainer.errors import UserError
from trainer.files import open_regular

FORMATS = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".arff", ".arff.gz", ".parquet")


class Row(NamedTuple):
    """The cells of a row, without surrounding spaces, and the line that it ends on."""

    line: int
    cells: list[str]


def table_name(path: Path) -> str:
    """Return the name of a file without its suffix, of which `.csv.gz` is one."""
    return path.name.removesuffix(path.suffix if path.suffix != ".gz" else "".join(path.suffixes[-2:])) or path.name


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the names of the columns, then every row. The suffix says the format; others than FORMATS are read as CSV.

    Raises:
        UserError: the file cannot be read, or is not of that format.
    """
    name = path.name.lower()
    if name.endswith(".parquet"):
        from trainer.data.sources.tables.parquet import read_parquet

        for number, cells in enumerate(read_parquet(path)):
            yield Row(number, cells)  # the header is row 0
        return
    packed = name.endswith(".gz")
    try:
        with open_regular(path) as file:
            content = io.BufferedReader(gzip.GzipFile(fileobj=file)) if packed else file
            text = io.TextIOWrapper(content, encoding="utf-8-sig", newline="")
            if name.removesuffix(".gz").endswith(".arff"):
                yield from (Row(line, cells) for line, cells in read_arff(text, path))
            else:
                yield from _read_csv(text, path, "\t" if name.removesuffix(".gz").endswith(".tsv") else ",")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be unpacked: {error}. It is damaged.") from None


def _read_csv(text: io.TextIOWrapper, path: Path, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(text, strict=True, delimiter=delimiter)
    try:
        for cells in reader:
            if cells:
                yield Row(reader.line_num, list(map(str.strip, cells)))
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}:{reader.line_num + 1}: not CSV in UTF-8: {error}.") from None
