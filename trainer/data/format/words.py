"""What texts of tables and labels mean: words for a missing value, and numbers."""

from trainer.data.format.specs import LARGEST

MISSING_WORDS = frozenset(
    (
        "",
        "#N/A",
        "#N/A N/A",
        "#NA",
        "-1.#IND",
        "-1.#QNAN",
        "-NaN",
        "-nan",
        "1.#IND",
        "1.#QNAN",
        "<NA>",
        "N/A",
        "NA",
        "NULL",
        "NaN",
        "None",
        "n/a",
        "nan",
        "null",
    )
)
"""Texts that count as missing values, the empty text among them. They are those that pandas reads as missing."""


def parse_number(text: str) -> float | None:
    """Return the value of a text; None if it is no finite number of at most LARGEST."""
    try:
        value = float(text)
    except ValueError:
        return None
    # Python alone reads 1_000 as a number.
    return value if abs(value) <= LARGEST and "_" not in text else None


def number_or_text(label: float | str) -> float | str:
    """Return the number that a label is, also one that is written as text, or else the text."""
    number = parse_number(label) if isinstance(label, str) else label
    return label if number is None else number
