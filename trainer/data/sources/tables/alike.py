"""Say which texts of a column are perhaps meant to be the same."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from trainer.terminal import Terminal

MAX_SHOWN = 3


def say_alike(name: str, values: Iterable[str]) -> None:
    """Print the values of a column that differ only in case, in spaces, or in how Unicode writes a letter."""
    groups = defaultdict[str, list[str]](list)
    for value in values:
        groups["".join(unicodedata.normalize("NFKC", value).casefold().split())].append(value)
    if alike := [group for group in groups.values() if len(group) > 1]:
        # As Python writes them, since the difference may be one that a terminal does not show.
        shown = "; ".join(", ".join(map(ascii, group)) for group in alike[:MAX_SHOWN])
        more = f"; and {len(alike) - MAX_SHOWN} more" if len(alike) > MAX_SHOWN else ""
        Terminal(soft_wrap=True).print(f"column {name!r} has values that are almost the same: {shown}{more}")
