"""Draw antialiased shapes at subpixel positions on a rotated canvas, with random numbers to place them.

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
"""x and y of each point, shape (K, 2)."""

_BITS = 4  # fractional bits of cv2's coordinates


class Dice:
    """A sequence of uniform random numbers in [0, 1)."""

    def __init__(self, rolls: Iterable[float]) -> None:
        self._rolls = iter(rolls)

    def between(self, low: float, high: float) -> float:
        """Draw a number in a range."""
        return low + (high - low) * next(self._rolls)

    def colour(self, low: float, high: float) -> Colour:
        """Draw a colour with each channel in a range."""
        return self.between(low, high), self.between(low, high), self.between(low, high)

    def among(self, colours: Sequence[Colour]) -> Colour:
        """Draw a mix of two adjacent colours of a list."""
        position = self.between(0, len(colours) - 1)
        return mix(colours[int(position)], colours[int(position) + 1], position % 1)


def mix(one: Colour, other: Colour, amount: float) -> Colour:
    """Mix one colour with an amount of the other, from 0 to 1."""
    return (
        one[0] + (other[0] - one[0]) * amount,
        one[1] + (other[1] - one[1]) * amount,
        one[2] + (other[2] - one[2]) * amount,
    )


class Canvas:
    """A picture to draw on, in coordinates that are rotated, scaled and shifted relative to its pixels.

    Args:
        pixels_HWC: uint8 pixels, which are changed.
        pivot: the point to rotate and scale about.
        turn: angle in degrees, clockwise.
        zoom: pixels per unit of length.
        move: shift of the pivot, in pixels.
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
        # With complex numbers, a point is transformed by one product and one sum.
        self._spin = cmath.rect(self._unit, math.radians(turn))
        self._shift = (complex(*pivot) + complex(*move)) * 2**_BITS - complex(*pivot) * self._spin

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour, angle: float = 0) -> None:
        """Draw a filled ellipse around (x, y), rotated clockwise by an angle in degrees."""
        self._ellipse(x, y, rx, ry, angle, (0, 360), colour, -1)

    def arc(
        self, x: float, y: float, rx: float, ry: float, span: tuple[float, float], colour: Colour, thickness: int = 1
    ) -> None:
        """Draw part of an ellipse's outline, between two angles in degrees: 0 is right, 90 is down."""
        self._ellipse(x, y, rx, ry, 0, span, colour, thickness)

    def polygon(self, points: Points, colour: Colour) -> None:
        """Draw a filled polygon."""
        cv2.fillPoly(self.pixels_HWC, [self._to_pixels(points)], colour, cv2.LINE_AA, _BITS)

    def lines(self, runs: Iterable[Points], colour: Colour, thickness: int = 1) -> None:
        """Draw lines, each through its own points."""
        points = [self._to_pixels(run) for run in runs]
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

    def _to_pixels(self, points: Points) -> np.ndarray:
        points_K1 = np.ascontiguousarray(points, float).view(complex)
        return (points_K1 * self._spin + self._shift).view(float).astype(np.int32)
