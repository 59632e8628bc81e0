"""Make text of unknown origin safe to print: the names of tasks, classes, units, runs and files.

A name may hold terminal escape sequences, line breaks, or characters that reverse the text around them. Each medium has
one function: `one_line` and `printable` for terminals and logs, terminal.py for tables, `text` in report/tables.py for
HTML, `label` in report/svg.py for figures, `markdown` in model_card.py for Markdown.
"""

import re
from collections.abc import Sequence

_LINE_BREAKS = "\n\t"
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0 and C1, escape sequences among them
    "\u2028\u2029"  # line and paragraph separators
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction of writing; joiners, which emoji need, are kept
    "\ud800-\udfff\ufffe\uffff]"  # not characters: UTF-8 cannot encode the first, XML the last two
)


def printable(text: str) -> str:
    r"""Escape control characters, so that a terminal shows them: ESC becomes `\x1b`. Keep line breaks and tabs."""
    return _CONTROLS.sub(lambda found: found[0] if found[0] in _LINE_BREAKS else _escaped(found), text)


def one_line(text: str) -> str:
    r"""Escape control characters, line breaks and tabs too: a line break becomes `\n`. For names inside a line."""
    return _CONTROLS.sub(_escaped, text)


def cut_line(text: str) -> str:
    """Do as `one_line` with a text of others, shortened to 1,000 characters before it is escaped."""
    return one_line(shortened(text, 1000))


def shortened(text: str, length: int) -> str:
    """Shorten a text to `length` characters; three dots mark that there were more."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def listed(words: Sequence[str], at_most: int) -> str:
    """Return the first words, and how many there are beside them: `a, b, c and 4 more`."""
    return ", ".join(words[:at_most]) + (f" and {len(words) - at_most} more" if len(words) > at_most else "")


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
