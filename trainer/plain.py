"""Show text that somebody else wrote: the names of tasks, classes, units, runs and files are no commands to a terminal.

A name may hold escape sequences, line breaks, or characters that reverse the text around them. Each medium has one
function: `one_line` and `printable` for terminals and logs, terminal.py for tables, `text` in report/tables.py for
HTML, `label` in report/svg.py for drawings, `markdown` in model_card.py for Markdown.
"""

import re

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


def cut_line(text: str, most: int = 1000) -> str:
    """Do as `one_line`, for a text of unknown origin and length; `...` replaces what is beyond `most` characters."""
    shown = one_line(text[:most])
    return shown if len(text) <= most else f"{shown}..."


def shortened(text: str, length: int) -> str:
    """Cut a text that is longer than so many letters; three dots say so."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
