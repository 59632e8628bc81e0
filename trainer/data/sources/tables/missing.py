"""Cells that mean a missing value because the user says so."""

from collections.abc import Callable, Sequence

from trainer.data.format.words import number_or_text

Pair = tuple[str, str]


class MissingCells:
    """The cells that `--missing` names, by column.

    Args:
        given: (column or pattern, cell) pairs. A number is meant however it is written: -1 and -1.0 are the same.
        find: returns the numbers of the columns that such names match.
    """

    def __init__(self, given: Sequence[Pair], find: Callable[[Sequence[str]], Sequence[int]]) -> None:
        self._given = given
        self._used: set[Pair] = set()
        self._meant: dict[int, dict[str | float, list[Pair]]] = {}
        self._with_numbers: set[int] = set()
        for pair in given:
            for column in find([pair[0]]):
                meant = self._meant.setdefault(column, {})
                for key in {pair[1], number_or_text(pair[1])}:
                    meant.setdefault(key, []).append(pair)
                    if isinstance(key, float):
                        self._with_numbers.add(column)

    @property
    def unused(self) -> list[Pair]:
        """The pairs that no cell was yet."""
        return [pair for pair in self._given if pair not in self._used]

    def clear(self, cells: list[str]) -> None:
        """Empty these cells of a row."""
        for column, meant in self._meant.items():
            cell = cells[column]
            pairs = meant.get(cell)
            if pairs is None and column in self._with_numbers:
                pairs = meant.get(number_or_text(cell))
            if pairs:
                self._used.update(pairs)
                cells[column] = ""
