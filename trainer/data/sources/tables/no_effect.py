"""Say which options of a table changed nothing: they are likely to be misspelt."""

from collections.abc import Collection, Mapping, Sequence

from trainer.data.format.words import parse_number
from trainer.data.sources.tables.columns import Survey
from trainer.data.sources.tables.table_file import TableFile
from trainer.errors import UserError, did_you_mean
from trainer.plain import listed
from trainer.terminal import Terminal

MAX_TEXTS = 1000
"""Texts of a column among which a similar one is looked for."""

MAX_SHOWN = 5


def say_unused_missing(file: TableFile, found: Mapping[int, Survey]) -> None:
    """Print the cells of `--missing` that no row has.

    Args:
        file: the file, after all of its rows were read once.
        found: column -> its survey.

    Raises:
        UserError: there is a similar text among the cells.
    """
    for pattern, word in file.missing.unused:
        columns = file.find([pattern])
        texts = {text for column in columns if column in found for text in _texts(found[column])}
        meant = did_you_mean(word, texts)
        said = f"--missing {pattern}={word}: no cell of {_listed(file, columns)} is {word!r}"
        if meant != ".":
            raise UserError(f"{file.path}: {said}{meant}\nIf it is not, leave --missing {pattern}={word} out.")
        Terminal(soft_wrap=True).print(said)


def say_no_categories(
    file: TableFile, categories: Sequence[str], sources: Collection[int], chosen: Collection[int]
) -> None:
    """Print the patterns of `--categories` that match no feature of texts.

    Args:
        file: the file.
        categories: names and patterns.
        sources: the features.
        chosen: those of them that are categories.
    """
    for pattern in categories:
        columns = [column for column in file.find([pattern]) if column in sources]
        if not set(columns) & set(chosen):
            Terminal(soft_wrap=True).print(
                f"--categories {pattern} has no effect: no texts in {_listed(file, columns)}. Columns of numbers are "
                "categories where they are named without a pattern"
            )


def _listed(file: TableFile, columns: Sequence[int]) -> str:
    """Return the names of the first columns, for a message."""
    return listed([repr(file.columns[column]) for column in columns], MAX_SHOWN)


def _texts(seen: Survey) -> list[str]:
    texts = {*seen.words, *(cell for cell in seen.values if parse_number(cell) is None)}
    return sorted(texts)[:MAX_TEXTS]
