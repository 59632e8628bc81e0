"""Draw a face with given attributes: flat shapes where CelebA's aligned photographs have their features.

The faces do not look like photographs. Each attribute has a visible sign, some of them faint, so that 40 tasks can be
learned; everything else (pose, light, skin, clothes, background) is random.

Coordinates are pixels of CelebA's 178 x 218 pictures, colours RGB. Shapes: H = 218 rows, W = 178 columns, C = 3, K
points of a curve.
"""

from collections.abc import Mapping

import numpy as np

from trainer.data.sources.synthetic.canvas import Canvas, Colour, Dice, mix
from trainer.data.sources.synthetic.face import Face, X, curve, make_face
from trainer.data.sources.synthetic.photo import draw_background, photograph

NUM_ROLLS = 96
"""Upper bound of the random numbers that one picture uses."""

EYES, MOUTH = 112.0, 153.0
"""y of the eyes and of the mouth in CelebA's alignment."""

BLACK, WHITE, GOLD, ROSE = (18.0, 16.0, 18.0), (246.0, 244.0, 240.0), (232.0, 188.0, 70.0), (226.0, 78.0, 92.0)
IRISES = ((70.0, 44.0, 26.0), (86.0, 110.0, 70.0), (70.0, 120.0, 170.0))
BOTH = (-1, 1)

_ARCH = np.linspace(-1, 1, 15)
"""Positions along a curve, from its left to its right end."""


def draw_face(has: Mapping[str, bool], dice: Dice) -> np.ndarray:
    """Draws a picture with the given attributes.

    Args:
        has: CelebA's attribute names -> whether to show them.
        dice: decides everything else; at most NUM_ROLLS are used.

    Returns:
        uint8 RGB, shape (H, W, C).
    """
    canvas = Canvas(
        draw_background(dice),
        pivot=(X, 130),
        turn=dice.between(-7, 7),
        zoom=dice.between(0.96, 1.05),
        move=(dice.between(-3, 3), dice.between(-3, 3)),
    )
    face = make_face(has, dice)
    if not has["Bald"]:
        _hair_behind(canvas, face, dice)
    _shoulders(canvas, face, dice)
    _head(canvas, face, dice)
    _beard(canvas, face)
    _nose(canvas, face)
    _mouth(canvas, face, dice)
    _eyes(canvas, face, dice)
    if has["Bald"]:
        canvas.ellipse(X - 12, face.top + 13, 11, 5, mix(face.skin, WHITE, 0.5), angle=-20)
    else:
        _hair_in_front(canvas, face, dice)
    if has["Wearing_Hat"]:
        _hat(canvas, face, dice)
    if has["Eyeglasses"]:
        _eyeglasses(canvas, dice)
    return photograph(canvas.pixels_HWC, dice, blurry=has["Blurry"])


def _hair_behind(canvas: Canvas, face: Face, dice: Dice) -> None:
    has, dark = face.has, mix(face.hair, BLACK, 0.3)
    width = face.rx + (6 if has["Male"] else 11)
    end = 132.0 if has["Male"] else dice.between(180, 204)
    canvas.ellipse(X, 104, width, 57, dark)
    if has["Straight_Hair"]:
        canvas.polygon([(X - width, 100), (X + width, 100), (X + width + 2, end + 12), (X - width - 2, end + 12)], dark)
        runs = [(X + side * (width - inwards), end + 12) for side in BOTH for inwards in (0, 4, 8)]
        canvas.lines([[(x, 96), (x, y)] for x, y in runs], face.hair)
    elif has["Wavy_Hair"]:
        y_K = np.arange(84, end + 9, 4.0)
        swing_K = 4.5 * np.sin((y_K - 84) / 5.2)
        for side in BOTH:
            outer, inner = (curve(X + side * (width + at) + swing_K, y_K) for at in (7, -14))
            canvas.polygon(np.concatenate([outer, inner[::-1]]), dark)
            canvas.lines([curve(X + side * (width + at) + swing_K, y_K) for at in (4, -2)], face.hair, 2)
    elif not has["Male"]:
        canvas.polygon([(X - width, 100), (X + width, 100), (X + face.rx, 158), (X - face.rx, 158)], dark)


def _shoulders(canvas: Canvas, face: Face, dice: Dice) -> None:
    has, man = face.has, face.has["Male"]
    neck = 23 if man else 17
    clothes = dice.colour(20, 230)
    if has["Wearing_Necktie"]:
        clothes = mix(clothes, (24, 26, 40), 0.85)
    canvas.polygon([(X - neck, 150), (X + neck, 150), (X + neck + 2, 216), (X - neck - 2, 216)], face.shade)
    canvas.ellipse(X, 246, 96 if man else 82, 50, clothes)
    if has["Wearing_Necktie"]:
        canvas.polygon([(X - neck, 190), (X + neck, 190), (X + 12, 218), (X - 12, 218)], WHITE)
        tie = mix(dice.colour(0, 255), (170, 20, 40), 0.6)
        canvas.polygon([(X - 6, 193), (X + 6, 193), (X + 3, 201), (X + 9, 218), (X - 9, 218), (X - 3, 201)], tie)
    else:
        canvas.ellipse(X, 196, neck + 4, 14, face.shade)
    if has["Wearing_Necklace"]:
        for step in range(-4, 5):
            canvas.ellipse(X + 5.6 * step, 207 - 0.75 * step**2, 2.7, 2.7, GOLD)


def _head(canvas: Canvas, face: Face, dice: Dice) -> None:
    has, skin, shade = face.has, face.skin, face.shade
    ear = face.rx + 1
    for side in BOTH:
        canvas.ellipse(X + side * ear, 120, 6, 11, shade)
        if has["Wearing_Earrings"]:
            canvas.ellipse(X + side * (ear + 2), 137, 4, 5.5, GOLD)
    if has["Double_Chin"]:
        canvas.ellipse(X, face.chin - 2, face.rx * 0.72, 13, mix(skin, shade, 0.4))
        canvas.arc(X, face.chin - 2, face.rx * 0.72, 13, (10, 170), shade, 2)
    canvas.polygon(face.outline, skin)
    if has["Double_Chin"]:
        canvas.arc(X, face.chin - 14, face.rx * 0.6, 13, (20, 160), shade, 2)
    for side in BOTH:
        if has["High_Cheekbones"]:
            canvas.ellipse(X + side * 27, 132, 9, 4.5, mix(skin, WHITE, 0.3), angle=-side * 25)
            canvas.ellipse(X + side * 28, 144, 9, 3, mix(skin, shade, 0.6), angle=-side * 40)
        if has["Rosy_Cheeks"]:
            canvas.ellipse(X + side * 26, 138, 9.5, 7.5, mix(skin, ROSE, 0.45))
    if not has["Young"]:
        creases = [[(X - 20, y), (X, y - 1.5), (X + 20, y)] for y in (84.0, 89.5, 95.0)]
        creases += [[(X + side * 12, 138), (X + side * 19, 146), (X + side * 20, 156)] for side in BOTH]
        canvas.lines(creases, shade)
    if not has["Attractive"]:
        for _ in range(5):
            spot = X + dice.between(-28, 28), dice.between(86, 168)
            canvas.ellipse(*spot, 1.5, 1.5, mix(skin, (120, 30, 20), 0.4))


def _beard(canvas: Canvas, face: Face) -> None:
    has, chin = face.has, face.chin
    hair = face.hair if has["Gray_Hair"] else mix(face.hair, BLACK, 0.35)
    # Along the jaw up to the ears, and back across the cheeks and the upper lip.
    jaw_K = face.outline[face.outline[:, 1] > 128]
    jaw_K = curve(X + 0.98 * (jaw_K[:, 0] - X), jaw_K[:, 1])
    cheeks = [(X - 31, 141), (X - 19, 146), (X, 142), (X + 19, 146), (X + 31, 141)]
    if has["5_o_Clock_Shadow"]:
        canvas.polygon(np.concatenate([jaw_K, cheeks]), mix(face.skin, (60, 64, 70), 0.3))
    if not has["No_Beard"]:
        canvas.polygon(np.concatenate([jaw_K, [(X - 24, 160), (X, 163), (X + 24, 160)]]), mix(face.skin, hair, 0.75))
    if has["Goatee"]:
        canvas.ellipse(X, chin - 7, 14, 9, hair)
        canvas.lines([[(X + side * 18, MOUTH), (X + side * 15, chin - 10)] for side in BOTH], hair, 4)
    if has["Mustache"]:
        wings = [(X + side * 18, MOUTH - 1) for side in BOTH]
        canvas.polygon([wings[0], (X - 8, MOUTH - 10), (X + 8, MOUTH - 10), wings[1], (X, MOUTH - 4)], hair)
    if has["Sideburns"]:
        for side in BOTH:
            edge = X + side * (face.rx - 1)
            canvas.polygon([(edge, 96), (edge - side * 7, 96), (edge - side * 8, 140), (edge - side * 2, 142)], hair)


def _nose(canvas: Canvas, face: Face) -> None:
    has, shade = face.has, face.shade
    wide = 10.5 if has["Big_Nose"] else 6.5
    if has["Big_Nose"]:
        canvas.ellipse(X, 134, wide, 7, mix(face.skin, shade, 0.4))
    if has["Pointy_Nose"]:
        canvas.polygon([(X - 2, 108), (X + wide - 1, 138), (X, 142), (X - 3, 136)], mix(face.skin, shade, 0.75))
        canvas.lines([[(X - 2, 112), (X - 1, 136)]], mix(face.skin, WHITE, 0.6), 2)
    else:
        canvas.lines([[(X + wide * 0.5, 116), (X + wide, 135)]], mix(face.skin, shade, 0.5))
    for side in BOTH:
        canvas.ellipse(X + side * wide * 0.5, 138.5, wide * 0.28, 1.9, mix(shade, BLACK, 0.4))
    canvas.arc(X, 135, wide, 5, (20, 160), mix(shade, BLACK, 0.15))


def _mouth(canvas: Canvas, face: Face, dice: Dice) -> None:
    has = face.has
    wide = dice.between(14, 16) + 4 * has["Smiling"]
    bend = 6.0 if has["Smiling"] else dice.between(-1.5, 0.5)
    thick = 4.2 if has["Big_Lips"] else 2.2
    gap = dice.between(5, 7) if has["Mouth_Slightly_Open"] else 0.0
    lips = mix((196, 18, 48), dice.colour(0, 120), 0.15) if has["Wearing_Lipstick"] else mix(face.skin, ROSE, 0.4)
    middle_K = MOUTH + bend * (0.5 - _ARCH**2)
    bulge_K = np.sqrt(1 - _ARCH**2)

    def band(above: float, below: float, colour: Colour) -> None:
        upper = curve(X + wide * _ARCH, middle_K - above * bulge_K)
        lower = curve(X + wide * _ARCH, middle_K + below * bulge_K)
        canvas.polygon(np.concatenate([upper, lower[::-1]]), colour)

    band(thick + gap * 0.3, thick * 1.2 + gap, lips)
    if gap:
        band(gap * 0.3, gap, (66, 14, 18))
        band(gap * 0.3, gap * 0.25, WHITE)
    else:
        canvas.lines([curve(X + wide * _ARCH, middle_K)], mix(lips, BLACK, 0.55))
    if has["Smiling"]:
        dimples = [[(X + side * (wide + 3), MOUTH - 9), (X + side * (wide + 5), MOUTH - 2)] for side in BOTH]
        canvas.lines(dimples, face.shade, 2)


def _eyes(canvas: Canvas, face: Face, dice: Dice) -> None:
    has, skin = face.has, face.skin
    iris, eyeshadow = dice.among(IRISES), mix(dice.colour(40, 130), (90, 40, 110), 0.5)
    wide, open_ = 9.2 + has["Attractive"], (2.2 if has["Narrow_Eyes"] else 4.5) + 0.8 * has["Attractive"]
    lashes, line = (BLACK, 2) if has["Heavy_Makeup"] else (mix(face.shade, BLACK, 0.6), 1)
    brow = face.hair if has["Gray_Hair"] else mix(face.hair, BLACK, 0.4)
    for side in BOTH:
        x = X + side * 19.5
        if has["Bags_Under_Eyes"]:
            canvas.ellipse(x, EYES + 6.5, 9.5, 5, mix(skin, (84, 50, 84), 0.38))
        if has["Heavy_Makeup"]:
            canvas.ellipse(x, EYES - 3, wide + 2.5, 7.5, mix(skin, eyeshadow, 0.7))
            canvas.lines([[(x + side * 7, EYES - 3), (x + side * 13, EYES - 7)]], lashes, 2)
        canvas.ellipse(x, EYES, wide, open_, WHITE)
        canvas.ellipse(x, EYES - 0.4, min(4.6, open_ + 0.4), min(4.6, open_), iris)
        canvas.ellipse(x, EYES - 0.4, min(2.1, open_), min(2.1, open_), BLACK)
        canvas.ellipse(x + 1.8, EYES - 1.6, 1.1, 1.0, WHITE)
        canvas.arc(x, EYES, wide, open_ + 0.3, (180, 360), lashes, line)
        rise = 11.0 if has["Arched_Eyebrows"] else 3.5
        canvas.arc(x + side, 104, 11.5, rise, (190, 350), brow, 5 if has["Bushy_Eyebrows"] else 2)


def _hair_in_front(canvas: Canvas, face: Face, dice: Dice) -> None:
    has, hair, rx, crown = face.has, face.hair, face.rx, face.top - 9
    from_middle_K = np.abs(_ARCH)
    if has["Bangs"]:
        hairline_K = 97 + 3 * np.cos(9 * _ARCH)
    elif has["Receding_Hairline"]:
        hairline_K = 63 + 24 * from_middle_K**8 - 8 * np.sin(from_middle_K * np.pi) ** 2
    else:
        hairline_K = dice.between(76, 81) + 15 * (_ARCH - dice.between(-0.6, 0.6)) ** 2
    roof = curve(X + (rx + 5) * _ARCH, 106 - (106 - crown) * np.sqrt(1 - 0.98 * _ARCH**2))
    front = curve(X + (rx - 3) * _ARCH, hairline_K)
    canvas.polygon(np.concatenate([roof, front[::-1]]), hair)
    light, dark = mix(hair, WHITE, 0.25), mix(hair, BLACK, 0.35)
    if has["Straight_Hair"]:
        at = range(-7, 8, 2)
        canvas.lines([[(X + 4 * k, crown + 4 + k * k / 4), (X + 5 * k, crown + 15 + k * k / 2)] for k in at], light)
    elif has["Wavy_Hair"]:
        for depth, colour in ((5, light), (11, dark), (17, light)):
            wave_K = crown + depth + 0.9 * depth * _ARCH**2 + 2.2 * np.sin(np.arange(15) * 1.9 + depth)
            canvas.lines([curve(X + (rx - 4) * _ARCH * (0.7 + depth / 60), wave_K + 16 * _ARCH**2)], colour, 2)
    if has["Bangs"]:
        canvas.lines([[(X + 7 * k, 76), (X + 8 * k, 95)] for k in range(-4, 5)], dark)


def _hat(canvas: Canvas, face: Face, dice: Dice) -> None:
    colour = dice.colour(10, 240)
    band = mix(colour, dice.colour(0, 255), 0.6)
    brim = face.rx + dice.between(8, 24)
    canvas.polygon(curve(X + (face.rx + 6) * _ARCH, 84 - 48 * np.sqrt(1 - _ARCH**2)), colour)
    canvas.polygon([(X - face.rx - 6, 74), (X + face.rx + 6, 74), (X + face.rx + 6, 84), (X - face.rx - 6, 84)], band)
    canvas.ellipse(X, 86, brim, 5.5, mix(colour, BLACK, 0.25))


def _eyeglasses(canvas: Canvas, dice: Dice) -> None:
    frame = mix(BLACK, dice.colour(0, 200), 0.3)
    dark = dice.between(0, 1) < 0.25
    for side in BOTH:
        if dark:
            canvas.ellipse(X + side * 20, EYES + 1, 15, 12, mix(frame, BLACK, 0.5))
            canvas.arc(X + side * 20, EYES + 1, 11, 8, (190, 250), (150, 150, 160), 2)
        canvas.arc(X + side * 20, EYES + 1, 15, 12, (0, 360), frame, 3)
        canvas.lines([[(X + side * 35, EYES - 1), (X + side * 46, EYES - 4)]], frame, 3)
    canvas.arc(X, EYES - 1, 5, 4, (180, 360), frame, 3)
