"""Drawing for a page: matplotlib axes that become an inline SVG with the page's own colour, font and width."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trainer.plain import one_line, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_WIDTH, PAGE_WIDTH = 4.6, 9.5
"""Width in inches of a drawing that takes half the page, and of one that takes all of it."""
_TAG = re.compile(r"<[^>]*>")
"""Only tags are rewritten; a name between them stays as it is, whatever it looks like."""
INK = "#010203"  # stands for the page's text colour until the SVG is written
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "paretrain",
    "text.parse_math": False,
    "text.usetex": False,
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.14,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.4,
    "figure.facecolor": "none",
}


def label(name: str, length: int = 40) -> str:
    """Shorten a name to fit a drawing and escape characters that SVG does not allow."""
    return shortened(one_line(name), length)


@contextmanager
def canvas(
    *, width: float = PANEL_WIDTH, height: float = 2.7, grid: bool = True, projection: str | None = None
) -> "Iterator[tuple[Axes, io.StringIO]]":
    """Yield axes to draw on and a buffer that holds the SVG after the block.

    Args:
        width, height: in inches.
        grid: draw one.
        projection: matplotlib's name for it, such as "polar"; None: straight axes.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    svg = io.StringIO()
    with rc_context(_STYLE | {"axes.grid": grid}), warnings.catch_warnings():
        # The browser draws the text with its own fonts, so glyphs missing from matplotlib's do not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.add_subplot(projection=projection), svg
        drawn = io.StringIO()
        no_metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(drawn, format="svg", metadata=no_metadata)
    svg.write(_inline(drawn.getvalue()))


def _inline(document: str) -> str:
    """Turn matplotlib's SVG document into an element with the page's colour, font and width, without its ids."""
    element = document[document.index("<svg") :]
    element = re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"', r"\1", element, count=1)
    element = re.sub(r"<style.*?</style>", "", element, count=1, flags=re.DOTALL)
    return _TAG.sub(_inline_tag, element)


def _inline_tag(tag: re.Match[str]) -> str:
    inlined = re.sub(r"font-family: [^;]*; ?", "", tag[0].replace(INK, "currentColor"))
    # matplotlib numbers its groups from 1 in each figure; only hashed ids (clip paths, markers) are referenced.
    return re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", inlined)
