"""Generate a synthetic CelebA: drawn faces with 40 attributes, in the format of CelebA's raw files.

It lets users try everything at full scale without the licensed data. A picture depends on the seed and its number only.

Shapes: N images, K random numbers per image.
"""

import os
import signal
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from rich.console import Console
from rich.progress import Progress

from trainer.data.format.publish import publishing
from trainer.data.reading.order import hash64
from trainer.data.sources.celeba.annotations import (
    ATTRIBUTES,
    ATTRIBUTES_STEM,
    IMAGES_STEM,
    OFFICIAL_SIZES,
    PARTITION_STEM,
    SPLITS,
    write_attributes,
    write_partition,
)
from trainer.data.sources.synthetic.attributes import draw_attributes
from trainer.data.sources.synthetic.canvas import Dice
from trainer.data.sources.synthetic.faces import NUM_ROLLS, draw_face
from trainer.errors import UserError

JPEG_QUALITY = 84
"""Gives files of CelebA's mean size, 7.1 kB."""

MIN_SAMPLES = 10
"""With fewer, a split would be empty."""

_CHUNK = 100


def write_synthetic_celeba(out: Path, *, samples: int, seed: int = 0) -> None:
    """Write a folder in CelebA's raw format: img_align_celeba/, list_attr_celeba.txt, list_eval_partition.txt.

    The splits have CelebA's proportions, and with 202,599 samples its sizes. An interrupted call leaves a folder
    without the text files, and the next one starts over.

    Args:
        out: a folder that does not exist yet, is empty, or contains an interrupted call's work.
        samples: number of images of all splits together.
        seed: determines every picture.

    Raises:
        UserError: there are too few samples, the folder is in use, or the disk is full.
    """
    if samples < MIN_SAMPLES:
        raise UserError(f"Expected at least {MIN_SAMPLES} samples, found {samples}.")
    numbers_N = np.arange(samples)
    names = [file_name(number) for number in numbers_N.tolist()]
    # The attributes are moved last: without them, the folder is not accepted as complete.
    with publishing(out, f"{ATTRIBUTES_STEM}.txt") as folder:
        images = folder / IMAGES_STEM
        images.mkdir()
        _draw_all(images, samples, seed)
        write_attributes(folder / f"{ATTRIBUTES_STEM}.txt", names, attributes(seed, numbers_N))
        write_partition(folder / f"{PARTITION_STEM}.txt", names, split_codes(samples))


def file_name(number: int) -> str:
    """Return CelebA's name of an image; numbers start at 0, names at 000001.jpg."""
    return f"{number + 1:06d}.jpg"


def attributes(seed: int, numbers_N: np.ndarray) -> np.ndarray:
    """Return the attributes of images: bool, shape (N, 40)."""
    return draw_attributes(_rolls(seed, numbers_N, 0, len(ATTRIBUTES)))


def draw_jpegs(seed: int, numbers_N: np.ndarray) -> Iterable[bytes]:
    """Draws images one by one, as JPEG files of CelebA's size and subsampling."""
    rolls_NK = _rolls(seed, numbers_N, len(ATTRIBUTES), NUM_ROLLS)
    for row, rolls in zip(attributes(seed, numbers_N).tolist(), rolls_NK.tolist(), strict=True):
        face_HWC = draw_face(dict(zip(ATTRIBUTES, row, strict=True)), Dice(rolls))
        yield simplejpeg.encode_jpeg(face_HWC, quality=JPEG_QUALITY, colorsubsampling="420")


def _rolls(seed: int, numbers_N: np.ndarray, first: int, count: int) -> np.ndarray:
    words = [hash64(seed, first + number, numbers_N) >> np.uint64(11) for number in range(count)]
    return np.stack(words, axis=1) * 2.0**-53


def split_codes(samples: int) -> list[int]:
    """Return the index in SPLITS for each image: CelebA's proportions, the first images for training."""
    total = sum(OFFICIAL_SIZES.values())
    train, val = (round(samples * OFFICIAL_SIZES[split] / total) for split in SPLITS[:2])
    return [0] * train + [1] * val + [2] * (samples - train - val)


def _draw_all(folder: Path, samples: int, seed: int) -> None:
    chunks = [range(first, min(first + _CHUNK, samples)) for first in range(0, samples, _CHUNK)]
    processes = min(len(os.sched_getaffinity(0)), len(chunks))
    progress = Progress(console=Console(stderr=True), disable=not sys.stderr.isatty())
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_prepare_worker)
    with progress, pool:
        bar = progress.add_task("drawing faces", total=samples)
        # Ctrl-C reaches every process of the terminal, but only this one should handle it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        drawn_chunks = pool.map(_draw_chunk, [folder] * len(chunks), chunks, [seed] * len(chunks))
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            for drawn in drawn_chunks:
                progress.advance(bar, drawn)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _prepare_worker() -> None:
    cv2.setNumThreads(1)


def _draw_chunk(folder: Path, numbers: range, seed: int) -> int:
    for number, jpeg in zip(numbers, draw_jpegs(seed, np.array(numbers)), strict=True):
        (folder / file_name(number)).write_bytes(jpeg)
    return len(numbers)
