"""Show text that somebody else wrote: the names of tasks, classes, units, runs and files are no commands to a terminal.

A name may hold escape sequences, line breaks, or characters that reverse the text around them. Each medium has one
function: `one_line` and `printable` for terminals and logs, `Terminal` for tables, `text` in report_tables.py for HTML,
`label` in report_figures.py for drawings, `markdown` in model_card.py for Markdown.
"""

import re
from typing import Any

from rich.console import Console
from rich.text import Text

_LINE_BREAKS = "\n\t"
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0 and C1, escape sequences among them
    "\u2028\u2029"  # line and paragraph separators
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction of writing; a joiner, as in emoji, is left alone
    "\ud800-\udfff\ufffe\uffff]"  # no characters: UTF-8 cannot hold the first, XML not the last two
)


def printable(text: str) -> str:
    r"""Replace what a terminal would obey rather than show: an escape becomes `\x1b`. Line breaks and tabs stay."""
    return _CONTROLS.sub(lambda found: found[0] if found[0] in _LINE_BREAKS else _escaped(found), text)


def one_line(text: str) -> str:
    r"""Do as `printable`, for a name in a line: a line break becomes `\n`."""
    return _CONTROLS.sub(_escaped, text)


def shortened(text: str, length: int) -> str:
    """Cut a text that is longer than so many letters; three dots say so."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


class Terminal(Console):
    """A console that shows every string, in tables too, as it is: no markup, no emoji codes, no escape sequences."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Turn a string, such as the cell of a table, into what is shown."""
        return super().render_str(printable(text), **options)
