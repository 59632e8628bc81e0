"""Decide whether a column to predict holds classes or a quantity, and say why. Refuse where that is unclear."""

import re
import shlex
from collections.abc import Sequence

from trainer.data.format.specs import LARGEST
from trainer.data.format.words import parse_number
from trainer.data.sources.tables.columns import MAX_WORDS, Survey, whole
from trainer.errors import UserError

MAX_CLASSES = 100
"""A column with more distinct texts, or more whole numbers that count up, is a classification only if the user says
so."""

MIN_ROWS_PER_CLASS = 2
"""With fewer labelled rows for each of its classes, on average, a column of more than MAX_RARE classes is one of names,
numbers of the rows, or free text."""

MAX_RARE = 10

MAX_IN_A_ROW = 20
"""Whole numbers without gaps that begin elsewhere than at 0 or 1, such as marks from 3 to 9, are classes up to this
many."""

MAX_GAPPED = 5
"""Whole numbers with gaps, such as prices and counts, and dates, are classes only up to this many."""

KINDS = ("classification", "regression")

_QUANTITY = re.compile(r"[-+\u2212]?[$€£¥]?\s?[-+\u2212]?[\d.,'\s]*\d(e[-+]?\d+)?\s?[%$€£¥]?", re.IGNORECASE)
"""A number as people write it: with thousands separators, a decimal comma, a currency, a percent sign."""

_DATE = re.compile(
    r"(\d{4}([-/.])\d{1,2}(\2\d{1,2})?"  # 2024-01-31, 2024/01
    r"|\d{1,2}([-/.])\d{1,2}\4\d{4}|\d{1,2}/\d{1,2}/\d{2}"  # 31.01.2024, 1/31/24
    r"|\d{1,2}[-. ]+[a-z]{3,9}\.?[-, ]+\d{2,4}|[a-z]{3,9}\.? \d{1,2},? \d{4})"  # 31 Jan 2024, Jan 31, 2024
    r"([T ,]+\d{1,2}:\d{2}.*)?|\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?( ?[ap]m)?",  # a time of day
    re.IGNORECASE,
)


def decide(where: str, name: str, seen: Survey, given: str | None) -> tuple[str, str]:
    """Return the kind of a column, and why it has that.

    Args:
        where: the first words of an error message, with the file and the column.
        name: of the column.
        seen: its cells.
        given: the kind that the user gave, or None.

    Raises:
        UserError: the kind that was given is none, or the cells do not say which one it is.
    """
    if given is not None:
        if given not in KINDS:
            raise UserError(f"--kinds {name}={given}: expected one of {', '.join(KINDS)}.")
        return given, "as --kinds says"
    num_words = sum(parse_number(value) is None for value in seen.values)
    num_numbers = len(seen.values) - num_words
    if not seen.whole and (num_numbers >= num_words or not seen.complete):
        return "regression", "numbers that are not whole"
    if seen.text:
        _refuse_no_classes(where, name, seen, 2 <= num_numbers >= num_words, *seen.text)
        return "classification", "texts"
    return _of_whole_numbers(where, name, seen)


def is_written_number(cell: str) -> bool:
    """Return whether a cell is a number for people alone: `1,5`, `1,000`, `$7` or `45 %`."""
    try:
        float(cell)
    except ValueError:
        return _QUANTITY.fullmatch(cell) is not None
    return False


def words(name: str, seen: Survey) -> str:
    """Return the cells of a column that are not numbers, and what to type if they mean missing values."""
    shown = ", ".join(repr(word[:40]) for word in seen.words[:MAX_WORDS])
    if len(seen.words) > MAX_WORDS:
        return f"{shown} and others"
    option = missing_option(name, seen.words)
    return f"{shown}; if missing values are meant, {f'add {option}' if option else 'leave the cells empty'}"


def missing_option(name: str, found: Sequence[str]) -> str | None:
    """Return the option that reads these cells of a column as missing values; None if it cannot be typed."""
    if any("," in text for text in (name, *found)) or "=" in name:
        return None
    return "--missing " + shlex.quote(",".join(f"{name}={word}" for word in found))


def _refuse_no_classes(where: str, name: str, seen: Survey, few_words: bool, line: int, cell: str) -> None:
    """Refuse a column with texts that are hardly the names of classes. `few_words`: most of its values are numbers."""
    count, shown = len(seen.values), f"such as {cell[:40]!r} in line {line}"
    leave_out = f"Do not name it in --targets, and add --ignore {name} where a pattern does"
    if_classes = f"add --kinds {name}=classification"
    if count > MAX_GAPPED and all(map(_DATE.fullmatch, seen.values)):
        raise UserError(
            f"{where} has {count} different dates or times, {shown}: they are no numbers, and hardly classes.\n"
            f"{leave_out}; write them as numbers to predict them, such as days since the first; or {if_classes} if "
            "each is a class."
        )
    if count > MAX_GAPPED and all(map(_QUANTITY.fullmatch, seen.values)):
        raise UserError(
            f"{where} has numbers that cannot be read, {shown}: expected digits with a decimal point, at most "
            f"{LARGEST:g}, without separators of thousands or a unit. Write them so, or {if_classes} if they are names."
        )
    if few_words:
        raise UserError(
            f"{where} has whole numbers, and cells that are none: {words(name, seen)}. If each is a class, "
            f"{if_classes}."
        )
    rare = count > MAX_RARE and seen.labelled < MIN_ROWS_PER_CLASS * count
    if rare or count > MAX_CLASSES:
        raise UserError(
            f"{where} has {count:,} different texts in {seen.labelled:,} labelled rows, {shown}. "
            f"{'They look like names or free text.' if rare else 'Are they classes?'}\n"
            f"{leave_out}; or {if_classes} if they are classes."
        )


def _of_whole_numbers(where: str, name: str, seen: Survey) -> tuple[str, str]:
    count, found = len(seen.values), set(map(whole, seen.values))
    in_a_row = not found or max(found) - min(found) < len(found)
    counts_up = in_a_row and min(found, default=0) in (0, 1)
    rare = count > MAX_RARE and seen.labelled < MIN_ROWS_PER_CLASS * count
    if counts_up and (rare or count > MAX_CLASSES):
        raise UserError(
            f"{where} has {count:,} different whole numbers that count up from {min(found)}, in {seen.labelled:,} "
            f"labelled rows: are they classes, a quantity, or numbers of the rows?\nChoose with --kinds "
            f"{name}=classification or --kinds {name}=regression, or leave the column out with --ignore {name}."
        )
    if found == {0, 1}:
        return "classification", "0 and 1"
    numbers = f"{len(found)} different whole numbers {'without' if in_a_row else 'with'} gaps"
    if counts_up or len(found) <= (MAX_IN_A_ROW if in_a_row else MAX_GAPPED):
        return "classification", f"{numbers}; if they are a quantity, add --kinds {name}=regression"
    return "regression", f"{numbers}; if they are classes, add --kinds {name}=classification"
