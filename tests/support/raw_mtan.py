"""A miniature of the preprocessed NYUv2 or Cityscapes of MTAN in its exact layout."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from trainer.data.sources.mtan import LAYOUTS

H, W = 16, 32


def scene(name: str, seed: int) -> dict[str, np.ndarray]:
    """Random pixels; the first row has no labels."""
    rng, layout = np.random.default_rng(seed), LAYOUTS[name]
    labels_HW = rng.integers(0, layout.num_classes, (H, W))
    labels_HW[0] = -1
    found = {"image": rng.integers(0, 256, (H, W, 3)) / 255, layout.labels: labels_HW}
    for task, (channels, _) in layout.values.items():
        values_HWC = rng.uniform(0.1, 1, (H, W, channels)).astype(np.float32)
        values_HWC[0] = 0
        found[task] = values_HWC
    return found


def write_raw(name: str, root: Path, counts: Mapping[str, int]) -> Path:
    """The files of so many scenes of each folder; the seeds of each begin at 0."""
    for folder, count in counts.items():
        for seed in range(count):
            for kind, values in scene(name, seed).items():
                path = root / folder / kind / f"{seed}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, values)
    return root
