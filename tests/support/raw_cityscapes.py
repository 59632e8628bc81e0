"""A miniature of Cityscapes in its exact layout."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

H, W = 24, 48


def scene(seed: int) -> dict[str, np.ndarray]:
    """Sky over road, two cars, a parked row of cars without instances, a caravan, and the car with the camera."""
    labels_HW = np.full((H, W), 23, np.uint8)
    labels_HW[H // 2 :] = 7
    instances_HW = labels_HW.astype(np.uint16)
    for number, (row, column) in enumerate([(12, 4 + seed), (14, 30)]):
        labels_HW[row : row + 5, column : column + 8] = 26
        instances_HW[row : row + 5, column : column + 8] = 26_000 + number
    labels_HW[10:12, 20:28] = instances_HW[10:12, 20:28] = 26
    labels_HW[8:12, 40:46], instances_HW[8:12, 40:46] = 29, 29_000
    labels_HW[-3:] = instances_HW[-3:] = 1  # the ego vehicle
    rng = np.random.default_rng(seed)
    disparity_HW = rng.integers(1, 20_000, (H, W)).astype(np.uint16)
    disparity_HW[rng.random((H, W)) < 0.2] = 0
    image_HWC = np.repeat((labels_HW * 7)[..., None], 3, axis=2) + np.arange(3, dtype=np.uint8) * 9
    return {"image": image_HWC, "labels": labels_HW, "instances": instances_HW, "disparity": disparity_HW}


def write_raw(root: Path, frames: Mapping[str, Sequence[str]]) -> Path:
    """The four files of each frame CITY/STEM of each split; the scenes' seeds count through all of them."""
    seed = 0
    for split, stems in frames.items():
        for frame in stems:
            found = scene(seed)
            seed += 1
            for name, pixels in (
                (f"leftImg8bit/{split}/{frame}_leftImg8bit.png", found["image"][..., ::-1]),
                (f"gtFine/{split}/{frame}_gtFine_labelIds.png", found["labels"]),
                (f"gtFine/{split}/{frame}_gtFine_instanceIds.png", found["instances"]),
                (f"disparity/{split}/{frame}_disparity.png", found["disparity"]),
            ):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(root / name), pixels)
    return root
