"""The peers of benchmarks/loader.py, used as in their own documentation, on the same images in one process."""

import json
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.data.format.decode import decode_into
from trainer.data.format.manifest import read_manifest
from trainer.data.format.specs import ImageSpec

SHUFFLE_BUFFER = 1000
"""Samples in the shuffle buffer, as in WebDataset's own examples."""


def pillow_batches(folder: Path, batch: int) -> Callable[[], object]:
    """Return a turn of WebDataset's documented pipeline: shuffle, decode by Pillow, resize, floats, normalise."""
    spec = read_manifest(folder).input
    mean_C, std_C = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)

    def transform(image: Any) -> torch.Tensor:
        pixels_HWC = np.asarray(image.resize((64, 64)), np.float32) / 255
        return torch.from_numpy((pixels_HWC - mean_C) / std_C).permute(2, 0, 1)

    def labels(found: dict[str, int]) -> torch.Tensor:
        return torch.tensor(list(found.values()))

    return _turns(_webdataset(folder).decode("pil").to_tuple("jpg", "json").map_tuple(transform, labels), batch)


def same_decoder_batches(folder: Path, batch: int) -> Callable[[], object]:
    """Return a turn of WebDataset's reading and shuffling with this project's decoding to uint8."""
    spec = read_manifest(folder).input
    assert isinstance(spec, ImageSpec)

    def image(data: bytes) -> np.ndarray:
        pixels_HWC = np.empty(spec.shape, np.uint8)
        decode_into(pixels_HWC, data, spec)
        return pixels_HWC

    def labels(data: bytes) -> np.ndarray:
        return np.array(list(json.loads(data).values()))

    return _turns(_webdataset(folder).to_tuple("jpg", "json").map_tuple(image, labels), batch)


def _webdataset(folder: Path) -> Any:
    import webdataset

    shards = [str(folder / shard.file) for shard in read_manifest(folder).split("train").shards]
    return webdataset.WebDataset(shards, shardshuffle=100).shuffle(SHUFFLE_BUFFER)


def _turns(dataset: Any, batch: int) -> Callable[[], object]:
    def forever() -> Iterator[Any]:
        while True:
            yield from dataset.batched(batch, partial=False)

    batches = forever()
    return partial(next, batches)


class Mosaicml:
    """MosaicML Streaming in its own process, since it needs another version of numpy than this project.

    Args:
        python: a Python that can import `streaming`, simplejpeg and cv2.
        raw: folder of CelebA's raw files.
        out: folder for its shards.
        batch: samples per turn.

    Attributes:
        fault: why it cannot run here; empty if it can.
    """

    def __init__(self, python: str, raw: Path, out: Path, batch: int) -> None:
        script = Path(__file__).with_name("loader_mosaicml.py")
        self._process = subprocess.Popen(
            [python, str(script), str(raw / "img_align_celeba"), str(out), str(batch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.fault = ""
        if not self._answer():
            self.fault = (self._process.communicate()[1].strip().splitlines() or ["it did not start"])[-1]

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of one batch, over all threads."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()
