"""A rich console that prints names literally."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer.plain import printable


class Terminal(Console):
    """A console that prints every string literally, in tables too: no markup, emoji codes or escape sequences."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string, such as the cell of a table, as printable text."""
        return super().render_str(printable(text), **options)

    def fits(self, table: Table) -> bool:
        """Return whether every column can have its full width."""
        return self.measure(table, options=self.options.update(max_width=10_000)).maximum <= self.width
