"""Names that somebody mistyped."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Ends a sentence about an unknown name: `; did you mean 'left'?` or a full stop."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else "."
