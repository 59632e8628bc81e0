"""Names: those that somebody mistyped, and those that cannot be shown as they are."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Ends a sentence about an unknown name: `; did you mean 'left'?` or a full stop."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else "."


def printable(text: str, most: int = 1000) -> str:
    """Return a text of unknown origin as one line: control characters escaped, cut to `most` characters."""
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[: most + 1])
    return shown if len(text) <= most else f"{shown[:most]}..."
