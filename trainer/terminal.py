"""A console that takes no name for markup."""

from typing import Any

from rich.console import Console
from rich.text import Text

from trainer.plain import printable


class Terminal(Console):
    """A console that shows every string, in tables too, as it is: no markup, no emoji codes, no escape sequences."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Turn a string, such as the cell of a table, into what is shown."""
        return super().render_str(printable(text), **options)
