"""Figures for a page: matplotlib drawings that take the page's own colour and font, and PNG files of the same."""

import io
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Petroff 2021 (arXiv 2107.02270), chosen for colour-vision deficiency.
PALETTE = ("#3f90da", "#e76300", "#832db6", "#5a9e6f", "#bd1f01", "#ffa90e", "#a96b59", "#717581")

_INK = "#010203"  # stands for the page's text colour until the SVG is written
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "paretrain",
    "text.parse_math": False,
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.facecolor": "none",
    "axes.linewidth": 0.6,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _INK,
    "grid.alpha": 0.14,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.4,
    "lines.linewidth": 1.5,
    "figure.facecolor": "none",
}

Panel = Callable[[Axes], None]


def draw(panels: list[list[Panel]], png: Path | None, *, panel_width: float = 4.7, panel_height: float = 3.1) -> str:
    """Draw rows of panels; return them as an SVG element for a page, and write a PNG file if `png` names one."""
    columns = max(map(len, panels))
    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the page's own fonts draw the text
        figure = Figure(figsize=(panel_width * columns, panel_height * len(panels)), layout="constrained")
        grid = figure.subplots(len(panels), columns, squeeze=False)
        for row_axes, row in zip(grid, panels, strict=True):
            for axes, panel in zip(row_axes, row, strict=True):
                panel(axes)
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr, call-arg]
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        if png is not None:
            figure.savefig(png, dpi=130, facecolor="white")
    return _inline(svg.getvalue())


def short(value: float) -> str:
    """Return a number for a label: 0.01, 5, 10⁻⁵."""
    exponent = round(math.log10(value)) if value > 0 else 0
    if exponent < -3 and math.isclose(value, 10.0**exponent):
        return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{value:g}"


def _inline(document: str) -> str:
    """Make an element of a page from matplotlib's SVG document: the page's colour, font and width; no foreign ids."""
    element = document[document.index("<svg") :].replace(_INK, "currentColor")
    element = re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"', r"\1", element, count=1)
    element = re.sub(r"<style.*?</style>", "", element, count=1, flags=re.DOTALL)
    element = re.sub(r"font-family: [^;]*; ?", "", element)
    return re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", element)
