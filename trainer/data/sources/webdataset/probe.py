"""Decode a few samples of every shard, targets included, before shards of another program are accepted.

Shapes: B samples of one shard.
"""

import logging
from pathlib import Path

import numpy as np

from trainer.data.format.index import read_member, shard_rows
from trainer.data.format.manifest import Manifest
from trainer.data.format.tables import load_index
from trainer.data.reading.reader import BadSample, SplitReader
from trainer.data.remote.folder import DataFolder
from trainer.data.sources.orientation import UPRIGHT, orientation
from trainer.errors import UserError

logger = logging.getLogger(__name__)

SAMPLES_PER_SHARD = 4


def probe(folder: Path, manifest: Manifest) -> None:
    """Decode some samples of every shard, evenly spaced; warn of those that cannot be used.

    Args:
        folder: a data folder, with everything but its manifest.
        manifest: what will be its manifest.

    Raises:
        UserError: of a shard none of these samples can be used.
    """
    bad: list[BadSample] = []
    tried = turned = 0
    for split in manifest.splits:
        reader = SplitReader(DataFolder(folder, manifest), split, manifest.tasks)
        index_NM, _ = load_index(folder, manifest, split)
        for shard, rows in zip(manifest.splits[split].shards, shard_rows(manifest.splits[split]), strict=True):
            count = min(SAMPLES_PER_SHARD, shard.samples)
            ids_B = np.linspace(rows.start, rows.stop - 1, count).astype(int)
            found = reader.read_into(reader.buffers(count), ids_B).bad
            if len(found) == count:
                raise UserError(
                    f"{shard.file}: none of the {count} samples that were tried can be used, such as "
                    f"{found[0].message.replace(f'{folder}/', '')}.\nDo the members hold what the description says?"
                )
            bad.extend(found)
            tried += count
            inputs = [read_member(folder, manifest.splits[split], entry) for entry in index_NM[ids_B][:, 0]]
            turned += sum(orientation(content) != UPRIGHT for content in inputs)
        reader.close()
    if turned:
        logger.warning(
            "%d of %d images that were tried do not lie upright: their EXIF orientation is ignored. Convert them with "
            "paretrain data folder, or turn them when the shards are written.",
            *(turned, tried),
        )
    if bad:
        logger.warning(
            "%d of %d samples that were tried cannot be used, such as %s.",
            *(len(bad), tried, bad[0].message.replace(f"{folder}/", "")),
        )
