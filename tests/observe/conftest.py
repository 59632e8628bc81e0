"""Pages without drawings, but where a test looks at one: to draw takes most of the time of a page."""

from typing import Any, TextIO

import pytest
from matplotlib.figure import Figure


@pytest.fixture(autouse=True)
def _draws_nothing_unless_marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.node.get_closest_marker("drawings"):
        monkeypatch.setattr(Figure, "savefig", _save_nothing)


def _save_nothing(figure: Figure, file: TextIO, **options: Any) -> None:
    file.write('<svg width="1" height="1"></svg>')
