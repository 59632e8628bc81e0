"""Read the rows of a table as cells of text: CSV and TSV, packed by gzip or not, ARFF, and Parquet."""

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from trainer.data.sources.tables.arff import read_arff
from trainer.data.sources.tables.delimited import Layout, convert, find_layout
from trainer.errors import UserError
from trainer.files import open_regular

FORMATS = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".arff", ".arff.gz", ".parquet")


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        line: the line that it ends on.
        cells: without surrounding spaces.
        name: what it is called in the table of `paretrain predict`; `TableFile` knows it.
    """

    line: int
    cells: list[str]
    name: str = ""


def table_name(path: Path) -> str:
    """Return the name of a file without its suffix, of which `.csv.gz` is one."""
    return path.name.removesuffix(path.suffix if path.suffix != ".gz" else "".join(path.suffixes[-2:])) or path.name


def read_rows(path: Path, say: Callable[[str], None] | None = None) -> Iterator[Row]:
    """Yield the names of the columns, then every row. The suffix says the format; others than FORMATS are read as CSV.

    Args:
        path: the file.
        say: called with a sentence for each decision that the suffix does not make, such as another separator.

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
            if name.removesuffix(".gz").endswith(".arff"):
                with io.TextIOWrapper(content, encoding="utf-8-sig", newline="") as text:
                    yield from (Row(line, cells) for line, cells in read_arff(text, path))
            else:
                usual = "\t" if name.removesuffix(".gz").endswith(".tsv") else ","
                layout = find_layout(content, path, usual)
                content.seek(0)
                if say:
                    for sentence in layout.said:
                        say(f"{path.name}: {sentence}")
                yield from _read_csv(content, path, layout)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be unpacked: {error}. It is damaged.") from None


def _read_csv(content: BinaryIO, path: Path, layout: Layout) -> Iterator[Row]:
    line = 0
    try:
        with io.TextIOWrapper(content, encoding=layout.encoding, newline="") as text:
            for _ in range(layout.skipped):
                text.readline()
            reader = csv.reader(text, strict=True, delimiter=layout.separator)
            for cells in reader:
                line = layout.skipped + reader.line_num
                if cells:
                    yield Row(line, list(map(str.strip, cells)))
    except csv.Error as error:
        raise UserError(f"{path}:{line + 1}: not CSV: {error}.") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}:{line + 1}: not CSV in UTF-8: {error}.\n"
            f"If a program for Windows wrote it, type: {convert(path, 'WINDOWS-1252')}"
        ) from None
