"""The background of a picture, and what a camera does to it: light, blur and grain.

Shapes: H = 218 rows, W = 178 columns, C = 3.
"""

from functools import lru_cache

import cv2
import numpy as np

from trainer.data.sources.celeba.annotations import HEIGHT, WIDTH
from trainer.data.sources.synthetic.canvas import Canvas, Dice, mix


def draw_background(dice: Dice) -> np.ndarray:
    """Draw a background at random: uint8 RGB, shape (H, W, C)."""
    base = dice.colour(50, 205)
    corners = np.array([mix(base, dice.colour(0, 255), 0.2) for _ in range(4)], np.uint8)
    wall_HWC = cv2.resize(corners.reshape(2, 2, 3), (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    canvas = Canvas(wall_HWC)
    for _ in range(3):
        x, y, radius = dice.between(0, WIDTH), dice.between(0, HEIGHT), dice.between(8, 30)
        canvas.ellipse(x, y, radius, radius, mix(base, dice.colour(60, 255), 0.3))
    return wall_HWC


def photograph(scene_HWC: np.ndarray, dice: Dice, *, blurry: bool) -> np.ndarray:
    """Apply light, blur and grain to a scene."""
    lights, grain = _lights(), _grain()
    photo_HWC = cv2.multiply(scene_HWC, lights[int(dice.between(0, len(lights)))], scale=1 / 200)
    if blurry:
        few = int(WIDTH / dice.between(5, 7)), int(HEIGHT / dice.between(5, 7))
        small_HWC = cv2.resize(photo_HWC, few, interpolation=cv2.INTER_AREA)
        photo_HWC = cv2.resize(small_HWC, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    row, column = int(dice.between(0, HEIGHT)), int(dice.between(0, WIDTH))
    return cv2.addWeighted(photo_HWC, 1, grain[row : row + HEIGHT, column : column + WIDTH], 1, -128)


@lru_cache
def _lights() -> tuple[np.ndarray, ...]:
    """Return the brightness of each pixel, times 200, for light from eight directions."""
    y_HW, x_HW = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    slopes = [np.cos(angle) * x_HW + np.sin(angle) * y_HW for angle in np.linspace(0, 2 * np.pi, 8, endpoint=False)]
    return tuple(np.repeat((200 + 38 * slope).astype(np.uint8)[:, :, None], 3, axis=2) for slope in slopes)


@lru_cache
def _grain() -> np.ndarray:
    """Return film noise around 128; each photograph gets another part of it."""
    noise_HWC = np.random.default_rng(0).normal(128, 7, (2 * HEIGHT, 2 * WIDTH, 3))
    return np.rint(cv2.GaussianBlur(noise_HWC, (0, 0), 0.8)).astype(np.uint8)
