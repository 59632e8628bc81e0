"""Load one pass over a split, for evaluations.

Do not pass this loader to `accelerate.prepare`: it already gives each rank its slice.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing

from trainer.data.format.specs import TaskSpec
from trainer.data.reading.batch import ALONE, Batch, RankOptions, batch_of
from trainer.data.reading.order import eval_batches
from trainer.data.reading.reader import SplitReader
from trainer.data.reading.workers import read_ahead
from trainer.data.remote.folder import DataFolder
from trainer.errors import UserError


class EvalLoader:
    """A pass in which all ranks together see every sample of a split exactly once; each iteration is a new pass.

    Every rank gets the same number of batches of `batch_size` slots; the last ones may contain padding.

    Args:
        data: the data folder.
        split: name of the split.
        tasks: whose targets to return; see `SplitReader`.
        batch_size: samples of this rank's batches.
        options: which rank this is, and how it reads.

    Raises:
        UserError: the data is faulty; while iterating: a sample cannot be used, because a metric over fewer samples
            would be another metric.
    """

    def __init__(
        self,
        data: DataFolder,
        *,
        split: str = "test",
        tasks: Sequence[TaskSpec],
        batch_size: int,
        options: RankOptions = ALONE,
    ) -> None:
        self._folder = data.path
        self._reader = SplitReader(data, split, tasks)
        self._batch_size = batch_size
        self._options = options
        self._sample_ids = eval_batches(
            data.manifest.num_samples(split),
            batch_size=batch_size,
            rank=options.rank,
            world_size=options.world_size,
        )

    def __len__(self) -> int:
        return len(self._sample_ids)

    def __iter__(self) -> Iterator[Batch]:
        batches = read_ahead(
            self._reader,
            self._sample_ids,
            batch_size=self._batch_size,
            workers=self._options.workers,
            stopped_seconds=self._options.stopped_seconds,
        )
        with closing(batches):
            for sample_ids_B, buffers, found in filter(None, batches):
                if found.bad:
                    raise UserError(
                        f"Evaluation needs every sample. Bad {found.bad[0].message}.\n"
                        f"Find all of them with: paretrain data check {self._folder}"
                    )
                targets = self._reader.targets(sample_ids_B, buffers, ())
                yield batch_of(sample_ids_B, buffers[:1], targets, pin_memory=self._options.pin_memory)

    def close(self) -> None:
        """Close the shards."""
        self._reader.close()
