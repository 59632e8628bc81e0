"""A rich console that prints names literally."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer.plain import printable

WIDTH_OF_A_FILE = 200
"""Columns of a table whose output goes to a file, which has no width of its own."""


class Terminal(Console):
    """A console that prints every string literally, in tables too: no markup, emoji codes or escape sequences."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string, such as the cell of a table, as printable text."""
        return super().render_str(printable(text), **options)

    @classmethod
    def for_tables(cls) -> "Terminal":
        """Return a console that does not fold tables where the output goes to a file."""
        return cls(width=None if cls().is_terminal else WIDTH_OF_A_FILE)

    def fits(self, table: Table) -> bool:
        """Return whether every column can have its full width."""
        return self.measure(table, options=self.options.update(max_width=10_000)).maximum <= self.width
