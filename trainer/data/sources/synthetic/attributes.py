"""Draw CelebA's 40 attributes at random, with CelebA's frequencies, and correlated in the same directions.

Sex and age are drawn first, the others conditionally on what is already drawn: beards on men, lipstick with make-up, at
most one colour of hair.

Shapes: N samples, T = 40 attributes.
"""

import numpy as np

from trainer.data.sources.celeba.annotations import ATTRIBUTES


class _Draws:
    """The attributes drawn so far; each uses its own column of the rolls."""

    def __init__(self, rolls_NT: np.ndarray) -> None:
        self._rolls_NT = rolls_NT
        self._drawn: dict[str, np.ndarray] = {}

    def toss(self, name: str, rate_N: np.ndarray | float) -> np.ndarray:
        self._drawn[name] = self._rolls_NT[:, ATTRIBUTES.index(name)] < rate_N
        return self._drawn[name]

    def table(self) -> np.ndarray:
        return np.stack([self._drawn[name] for name in ATTRIBUTES], axis=1)


def draw_attributes(rolls_NT: np.ndarray) -> np.ndarray:
    """Turn uniform random numbers into attributes.

    Args:
        rolls_NT: independent and uniform in [0, 1).

    Returns:
        bool, shape (N, T), in the order of ATTRIBUTES. Marginal rates are within 2 percentage points of CelebA's.
    """
    draws = _Draws(rolls_NT)
    toss = draws.toss
    young = toss("Young", 0.774)
    man = toss("Male", np.where(young, 0.353, 0.636))
    woman = ~man

    def rate(young_woman: float, old_woman: float, young_man: float, old_man: float) -> np.ndarray:
        return np.select(
            [woman & young, woman, young], [young_woman, old_woman, young_man], old_man
        )  # fmt: skip

    toss("Blurry", 0.051)
    makeup = toss("Heavy_Makeup", rate(0.69, 0.50, 0.0, 0.0))
    toss("Wearing_Lipstick", np.where(makeup, 0.97, np.where(woman, 0.50, 0.005)))
    toss("Rosy_Cheeks", np.where(makeup, 0.16, 0.005))
    toss("Attractive", np.where(makeup, 0.78, rate(0.59, 0.21, 0.37, 0.09)))
    toss("Pale_Skin", np.where(woman, 0.057, 0.024))

    chubby = toss("Chubby", rate(0.015, 0.09, 0.055, 0.20))
    toss("Double_Chin", np.where(chubby, 0.45, rate(0.004, 0.05, 0.01, 0.09)))
    toss("Oval_Face", np.where(chubby, 0.05, np.where(woman, 0.34, 0.22)))
    smiling = toss("Smiling", np.where(woman, 0.54, 0.40))
    toss("High_Cheekbones", np.where(smiling, 0.80, np.where(makeup, 0.26, 0.08)))
    toss("Mouth_Slightly_Open", np.where(smiling, 0.74, 0.245))
    toss("Narrow_Eyes", np.where(smiling, 0.14, 0.09))
    toss("Bags_Under_Eyes", rate(0.085, 0.30, 0.26, 0.47))
    toss("Big_Lips", np.where(woman, 0.29, 0.17))
    toss("Big_Nose", rate(0.08, 0.26, 0.36, 0.52))
    toss("Pointy_Nose", np.where(woman, 0.36, 0.16))
    toss("Arched_Eyebrows", np.where(makeup, 0.50, np.where(woman, 0.24, 0.07)))
    toss("Bushy_Eyebrows", np.where(woman, 0.06, 0.26))

    toss("5_o_Clock_Shadow", np.where(man, 0.266, 0.0))
    goatee = toss("Goatee", np.where(man, 0.15, 0.0))
    mustache = toss("Mustache", np.where(goatee, 0.30, np.where(man, 0.065, 0.0)))
    sideburns = toss("Sideburns", np.where(goatee, 0.40, np.where(man, 0.09, 0.0)))
    toss("No_Beard", np.where(goatee, 0.0, np.where(mustache | sideburns, 0.10, np.where(man, 0.795, 0.9995))))

    hat = toss("Wearing_Hat", rate(0.025, 0.03, 0.085, 0.06))
    bald = toss("Bald", np.where(hat, 0.0, rate(0.0, 0.0, 0.02, 0.115)))
    hair = ~bald & ~hat
    black = toss("Black_Hair", np.where(hair, np.where(young, 0.29, 0.15), 0.03))
    blond = toss("Blond_Hair", np.where(hair & ~black, rate(0.32, 0.36, 0.03, 0.03), 0.0))
    gray = toss("Gray_Hair", np.where(hair & ~black & ~blond, rate(0.002, 0.20, 0.006, 0.32), 0.0))
    toss("Brown_Hair", np.where(hair & ~black & ~blond & ~gray, rate(0.49, 0.42, 0.34, 0.25), 0.0))
    receding = toss("Receding_Hairline", np.where(hair, rate(0.025, 0.10, 0.085, 0.32), 0.0))
    toss("Bangs", np.where(hair & ~receding, rate(0.23, 0.20, 0.09, 0.05), 0.0))
    wavy = toss("Wavy_Hair", np.where(hair, np.where(woman, 0.475, 0.145), 0.0))
    toss("Straight_Hair", np.where(hair & ~wavy, 0.34, 0.0))

    toss("Eyeglasses", rate(0.02, 0.07, 0.08, 0.20))
    toss("Wearing_Earrings", np.where(woman, 0.31, 0.015))
    toss("Wearing_Necklace", np.where(woman, 0.20, 0.015))
    toss("Wearing_Necktie", rate(0.0, 0.002, 0.11, 0.29))
    return draws.table()
