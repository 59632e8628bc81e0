"""Smooth shapes at fractions of a pixel, on a canvas that may lie askew, and the dice that decide where they go.

Coordinates are pixels, x to the right, y down. Colours are RGB, from 0 to 255. Shapes: H rows, W columns, C = 3, K
points.
"""

import cmath
import math
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

Colour = tuple[float, float, float]
Points = Sequence[tuple[float, float]] | np.ndarray
"""x and y of each, shape (K, 2)."""

_BITS = 4  # of a pixel's fraction, as cv2 counts them


class Dice:
    """Uniform numbers in [0, 1), handed out one by one."""

    def __init__(self, rolls: Iterable[float]) -> None:
        self._rolls = iter(rolls)

    def between(self, low: float, high: float) -> float:
        """A number of that range."""
        return low + (high - low) * next(self._rolls)

    def colour(self, low: float, high: float) -> Colour:
        """A colour, each channel of that range."""
        return self.between(low, high), self.between(low, high), self.between(low, high)

    def among(self, colours: Sequence[Colour]) -> Colour:
        """A mix of two colours that stand side by side."""
        place = self.between(0, len(colours) - 1)
        return mix(colours[int(place)], colours[int(place) + 1], place % 1)


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """One colour with a share of the other."""
    return (
        one[0] + (other[0] - one[0]) * share,
        one[1] + (other[1] - one[1]) * share,
        one[2] + (other[2] - one[2]) * share,
    )


class Canvas:
    """A picture to draw on, in coordinates that are turned, zoomed and moved against its pixels.

    Args:
        pixels_HWC: uint8; drawn into.
        pivot: the point to turn and zoom about.
        turn: clockwise, in degrees.
        zoom: pixels per unit of length.
        move: of the pivot, in pixels.
    """

    def __init__(
        self,
        pixels_HWC: np.ndarray,
        *,
        pivot: tuple[float, float] = (0, 0),
        turn: float = 0,
        zoom: float = 1,
        move: tuple[float, float] = (0, 0),
    ) -> None:
        self.pixels_HWC = pixels_HWC
        self._turn = turn
        self._unit = zoom * 2**_BITS
        # As complex numbers, a point is placed by one product and one sum.
        self._spin = cmath.rect(self._unit, math.radians(turn))
        self._shift = (complex(*pivot) + complex(*move)) * 2**_BITS - complex(*pivot) * self._spin

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour, angle: float = 0) -> None:
        """A filled ellipse around (x, y), turned clockwise by an angle in degrees."""
        self._ellipse(x, y, rx, ry, angle, (0, 360), colour, -1)

    def arc(
        self, x: float, y: float, rx: float, ry: float, span: tuple[float, float], colour: Colour, thickness: int = 1
    ) -> None:
        """Part of an ellipse's outline, between two angles in degrees: 0 is right, 90 is down."""
        self._ellipse(x, y, rx, ry, 0, span, colour, thickness)

    def polygon(self, points: Points, colour: Colour) -> None:
        """A filled polygon."""
        cv2.fillPoly(self.pixels_HWC, [self._place(points)], colour, cv2.LINE_AA, _BITS)

    def lines(self, runs: Iterable[Points], colour: Colour, thickness: int = 1) -> None:
        """Lines, each through its own points."""
        points = [self._place(run) for run in runs]
        cv2.polylines(self.pixels_HWC, points, False, colour, thickness, cv2.LINE_AA, _BITS)

    def _ellipse(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        angle: float,
        span: tuple[float, float],
        colour: Colour,
        thickness: int,
    ) -> None:
        placed = complex(x, y) * self._spin + self._shift
        centre = int(placed.real), int(placed.imag)
        axes = round(rx * self._unit), round(ry * self._unit)
        cv2.ellipse(self.pixels_HWC, centre, axes, self._turn + angle, *span, colour, thickness, cv2.LINE_AA, _BITS)

    def _place(self, points: Points) -> np.ndarray:
        points_K1 = np.ascontiguousarray(points, float).view(complex)
        return (points_K1 * self._spin + self._shift).view(float).astype(np.int32)
