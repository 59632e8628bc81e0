"""The MosaicML side of benchmarks/loader.py. It imports nothing of this project, as the two need different numpys.

Prints "ready", then answers each line on stdin with the CPU seconds of one batch.
"""

import itertools
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset  # type: ignore[import-not-found]


class Faces(StreamingDataset):
    """A data set as in MosaicML's documentation: decode in __getitem__, batch in the loader."""

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        sample = super().__getitem__(index)
        pixels_HWC = simplejpeg.decode_jpeg(sample["image"], "RGB", min_height=64, min_width=64, min_factor=2)
        return cv2.resize(pixels_HWC, (64, 64), interpolation=cv2.INTER_LINEAR), sample["labels"]


def write(images: Path, out: Path) -> None:
    columns = {"image": "bytes", "labels": "ndarray:uint8:40"}
    with MDSWriter(out=str(out), columns=columns, size_limit=1 << 24) as writer:
        for path in sorted(images.glob("*.jpg")):
            writer.write({"image": path.read_bytes(), "labels": np.zeros(40, np.uint8)})


def main() -> None:
    images, out, batch = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    cv2.setNumThreads(1)
    write(images, out)
    dataset = Faces(local=str(out), shuffle=True, batch_size=batch)
    loader = StreamingDataLoader(dataset, batch_size=batch, drop_last=True)
    batches = (found for _ in itertools.count() for found in loader)
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.process_time()
        next(batches)
        print(time.process_time() - started, flush=True)


if __name__ == "__main__":
    main()
