"""The colours and proportions of one face, given its attributes.

Coordinates are pixels of CelebA's 178 x 218 pictures, colours RGB. Shapes: K points of a curve.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trainer.data.sources.synthetic.canvas import Colour, Dice, mix

X = 89.0
"""x of the middle of a face in CelebA's alignment."""

SKINS = ((240.0, 202.0, 172.0), (228.0, 182.0, 148.0), (206.0, 154.0, 116.0), (164.0, 112.0, 78.0), (116.0, 76.0, 52.0))
PALE = (250.0, 236.0, 230.0)
HAIRS = {
    "Black_Hair": (24.0, 20.0, 24.0),
    "Brown_Hair": (98.0, 58.0, 32.0),
    "Blond_Hair": (226.0, 190.0, 112.0),
    "Gray_Hair": (178.0, 178.0, 182.0),
}
OTHER_HAIRS = ((58.0, 40.0, 34.0), (146.0, 60.0, 30.0), (156.0, 116.0, 74.0))

_CIRCLE = np.exp(2j * np.pi * np.arange(48) / 48)


@dataclass(frozen=True)
class Face:
    """Properties on which several features of a face depend.

    Attributes:
        has: attribute -> whether the face has it.
        skin: colour of lit skin.
        shade: colour of skin in its own shadow.
        hair: colour of the hair.
        rx: half of the head's width.
        top: y of the head's upper end.
        chin: y of its lower end.
        outline: outline of the head, as a polygon.
    """

    has: Mapping[str, bool]
    skin: Colour
    shade: Colour
    hair: Colour
    rx: float
    top: float
    chin: float
    outline: np.ndarray


def make_face(has: Mapping[str, bool], dice: Dice) -> Face:
    """Choose colours and proportions that fit the attributes."""
    skin = mix(dice.among(SKINS), PALE, 0.9) if has["Pale_Skin"] else dice.among(SKINS)
    named = [colour for name, colour in HAIRS.items() if has[name]]
    hair = mix(named[0], dice.colour(0, 255), 0.08) if named else dice.among(OTHER_HAIRS)
    rx = 40 + 2.5 * has["Male"] + 8 * has["Chubby"] - 4 * has["Oval_Face"] + dice.between(-1.5, 1.5)
    chin = 176 + 3 * has["Male"] + 6 * has["Oval_Face"] + dice.between(-2, 2)
    top = 56 - 3 * has["Oval_Face"]
    cos_K, sin_K = _CIRCLE.real, _CIRCLE.imag
    squareness = 0.72 if has["Chubby"] else 0.8 if has["Male"] else 1.0
    x_K = X + rx * np.sign(cos_K) * np.abs(cos_K) ** np.where(sin_K > 0, squareness, 1.0)
    outline = curve(x_K, (top + chin) / 2 + (chin - top) / 2 * sin_K)
    return Face(has, skin, mix(skin, (70, 20, 10), 0.25), hair, rx, top, chin, outline)


def curve(x_K: np.ndarray, y_K: np.ndarray | float) -> np.ndarray:
    """Return points as rows of x and y, shape (K, 2)."""
    points_K2 = np.empty((len(x_K), 2))
    points_K2[:, 0], points_K2[:, 1] = x_K, y_K
    return points_K2
