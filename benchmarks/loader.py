"""Time the data loader against its own limit and against peers:  python -m benchmarks.loader [--quick]

Synthetic CelebA: 178 x 218 JPEGs to 64 x 64, 40 labels, batches of 256. All numbers but the scaling of workers are CPU
time of one process, which other load affects least. The loaders alternate for many turns, and a ratio is the median of
the ratios of the turns. The last line printed is one JSON object:

    limit_ratio                   speed of the loader / speed of decoding and resizing the same bytes from memory
    vs_webdataset_pillow          speed of the loader / WebDataset with its own decoding by Pillow, resize, floats
    vs_webdataset_same_decoder    / WebDataset with this project's decoder into uint8
    vs_mosaicml                   / MosaicML Streaming with this project's decoder; null where it cannot be imported
    two_worker_scaling            wall-clock speed with two workers / with one; needs two free cores
    three_sources                 speed of the loader on three sources, 128 + 96 + 32 samples a batch / on one
    resized_gain                  speed on shards of images that were resized once / speed on shards of JPEGs
    first_batch_seconds_at_end    from opening the data to the first batch, at the end of an epoch of 200,000 samples
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.loader_peers import Mosaicml, pillow_batches, same_decoder_batches
from trainer.data.format.manifest import read_manifest, write_manifest
from trainer.data.format.shards import write_array
from trainer.data.format.specs import ImageSpec
from trainer.data.format.tables import load_index
from trainer.data.reading.batch import RankOptions
from trainer.data.reading.loader import TrainLoader
from trainer.data.reading.mixture import merged
from trainer.data.reading.order import START, Cursor
from trainer.data.remote.folder import DataFolder
from trainer.data.sources.celeba.convert import write_celeba
from trainer.data.sources.synthetic.generate import write_synthetic_celeba

BATCH = 256
THREE = (128, 96, 32)
LONG_EPOCH = 200_000

Turn = Callable[[], object]
"""Reads BATCH samples."""


@dataclass(frozen=True)
class Size:
    """How much to measure."""

    samples: int
    turns: int
    scaling_batches: int


SIZES = {
    True: Size(samples=2000, turns=12, scaling_batches=12),
    False: Size(samples=20_000, turns=60, scaling_batches=60),
}


def bare_decoder(folder: Path) -> Turn:
    """Return a turn that only decodes and resizes bytes in memory: no files, labels, order or checks."""
    import simplejpeg

    manifest = read_manifest(folder)
    spec = manifest.input
    assert isinstance(spec, ImageSpec)
    index_NM, _ = load_index(folder, manifest, "train")
    content = [(folder / shard.file).read_bytes() for shard in manifest.split("train").shards]
    rows = np.random.default_rng(0).permutation(index_NM[:][:, 0])[: 8 * BATCH].tolist()
    images = cycle([content[shard][offset : offset + size] for shard, offset, size, _ in rows])

    def turn() -> None:
        batch_BHWC = np.empty((BATCH, *spec.shape), np.uint8)
        for slot_HWC in batch_BHWC:
            pixels_HWC = simplejpeg.decode_jpeg(
                next(images), "RGB", min_height=spec.height, min_width=spec.width, min_factor=2
            )
            cv2.resize(pixels_HWC, (spec.width, spec.height), dst=slot_HWC, interpolation=cv2.INTER_LINEAR)

    return turn


@contextmanager
def loading(folders: Sequence[Path], counts: Sequence[int] = (BATCH,), workers: int = 0) -> Iterator[Turn]:
    """Yield a turn of this project's loader, on one folder or several sources."""
    with closing(train_loader(folders, counts, workers)) as loader:
        yield partial(next, loader)


def train_loader(
    folders: Sequence[Path], counts: Sequence[int], workers: int = 0, cursor: Cursor = START
) -> TrainLoader:
    """Open folders with the same tasks, one as a run of one folder has it, several as sources."""
    names = [""] if len(folders) == 1 else [str(number) for number in range(len(folders))]
    sources = [
        DataFolder(folder, read_manifest(folder), None, name) for folder, name in zip(folders, names, strict=True)
    ]
    return TrainLoader(
        sources,
        samples_per_step=counts,
        tasks=merged(sources).tasks,
        seed=0,
        cursors=dict.fromkeys(names, cursor),
        options=RankOptions(workers=workers),
    )


def cpu_seconds(turn: Turn) -> float:
    started = time.process_time()
    turn()
    return time.process_time() - started


def take_turns(everybody: dict[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    """Return the CPU seconds of a batch for each turn."""
    for measure in everybody.values():
        measure()  # warm up
    seconds: dict[str, list[float]] = {name: [] for name in everybody}
    for number in range(turns):
        for name, measure in list(everybody.items())[:: 1 if number % 2 else -1]:
            seconds[name].append(measure())
    return seconds


def two_worker_scaling(folder: Path, batches: int) -> float:
    """Return the wall-clock speed with two workers relative to one: the median over short alternating runs."""
    found = []
    for _ in range(5):
        took = []
        for workers in (1, 2):
            with loading([folder], workers=workers) as turn:
                for _ in range(4):  # batches that the workers have prepared already
                    turn()
                started = time.perf_counter()
                for _ in range(batches):
                    turn()
                took.append(time.perf_counter() - started)
        found.append(took[0] / took[1])
    return statistics.median(found)


def stretch(folder: Path, out: Path) -> None:
    """Write a folder with an epoch of LONG_EPOCH samples: the same shards repeated under other names."""
    manifest = read_manifest(folder)
    split = manifest.split("train")
    index_NM, labels_NT = load_index(folder, manifest, "train")
    times = -(-LONG_EPOCH // len(index_NM))
    out.mkdir()
    shards = []
    for copy in range(times):
        for shard in split.shards:
            shards.append(shard.model_copy(update={"file": f"{copy}-{shard.file}"}))
            os.link(folder / shard.file, out / shards[-1].file)
    index_NM = np.concatenate([index_NM] * times)
    index_NM["shard"] = np.repeat(np.arange(len(shards)), [shard.samples for shard in shards])[:, None]
    longer = split.model_copy(
        update={
            "shards": tuple(shards),
            "index": write_array(out / split.index.file, index_NM),
            "labels": write_array(out / split.labels.file, np.concatenate([labels_NT] * times)),
        }
    )
    write_manifest(out, manifest.model_copy(update={"splits": {"train": longer}}))


def first_batch_seconds_at_end(folder: Path) -> float:
    """Return the seconds from opening the data to the first batch, for a run resumed near the end of an epoch."""
    num_samples = read_manifest(folder).num_samples("train")
    started = time.perf_counter()
    with closing(train_loader([folder], [BATCH], cursor=Cursor(3, num_samples - 2 * BATCH))) as loader:
        next(loader)
        return time.perf_counter() - started


def measure(size: Size, mosaicml_python: str, console: Console) -> dict[str, float | None]:
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        console.print(f"drawing {size.samples:,} faces", style="dim")
        write_synthetic_celeba(root / "raw", samples=size.samples)
        write_celeba(root / "raw", root / "jpeg", store="jpeg")
        write_celeba(root / "raw", root / "resized", store="resized")
        turns: dict[str, Turn] = {
            "limit": bare_decoder(root / "jpeg"),
            "paretrain": stack.enter_context(loading([root / "jpeg"])),
            "paretrain, three sources": stack.enter_context(loading([root / "jpeg"] * 3, THREE)),
            "paretrain, resized shards": stack.enter_context(loading([root / "resized"])),
            "WebDataset, Pillow": pillow_batches(root / "jpeg", BATCH),
            "WebDataset, same decoder": same_decoder_batches(root / "jpeg", BATCH),
        }
        everybody: dict[str, Callable[[], float]] = {name: partial(cpu_seconds, turn) for name, turn in turns.items()}
        mosaicml = Mosaicml(mosaicml_python, root / "raw", root / "mds", BATCH)
        stack.callback(mosaicml.close)
        if mosaicml.fault:
            console.print(f"MosaicML Streaming is left out: {mosaicml.fault}")
        else:
            everybody["MosaicML Streaming, same decoder"] = mosaicml.cpu_seconds
        seconds = take_turns(everybody, size.turns)
        stretch(root / "jpeg", root / "long")
        first_batch_seconds_at_end(root / "long")
        firsts = [first_batch_seconds_at_end(root / "long") for _ in range(5)]
        scaling = two_worker_scaling(root / "jpeg", size.scaling_batches)

    def speed_over(name: str, other: str) -> float | None:
        pairs = zip(seconds[other], seconds[name], strict=True) if other in seconds else ()
        ratios = [theirs / ours for theirs, ours in pairs]
        return round(statistics.median(ratios), 3) if ratios else None

    table = Table(title=f"Batches of {BATCH}, 64 x 64, 40 labels, one process")
    for column in ("", "images/s of CPU", "of the limit"):
        table.add_column(column, justify="right" if column else "left")
    for name, taken in seconds.items():
        table.add_row(name, f"{BATCH / statistics.median(taken):,.0f}", f"{speed_over(name, 'limit'):.2f}")
    console.print(table)
    return {
        "limit_ratio": speed_over("paretrain", "limit"),
        "vs_webdataset_pillow": speed_over("paretrain", "WebDataset, Pillow"),
        "vs_webdataset_same_decoder": speed_over("paretrain", "WebDataset, same decoder"),
        "vs_mosaicml": speed_over("paretrain", "MosaicML Streaming, same decoder"),
        "three_sources": speed_over("paretrain, three sources", "paretrain"),
        "two_worker_scaling": round(scaling, 3),
        "resized_gain": speed_over("paretrain, resized shards", "paretrain"),
        "first_batch_seconds_at_end": round(statistics.median(firsts), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer images and turns: under a minute")
    parser.add_argument(
        "--mosaicml",
        default=sys.executable,
        metavar="PYTHON",
        help="the Python of an environment with mosaicml-streaming; it needs another numpy than this project",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    found = measure(SIZES[arguments.quick], arguments.mosaicml, Console(width=120))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
