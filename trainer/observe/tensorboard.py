"""Log a run for TensorBoard, if the user asks for it, into `RUN/tensorboard`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainer.errors import UserError
from trainer.observe.tracker import CURVES, Guard, Tracker, flatten

FOLDER = "tensorboard"


class TensorBoardTracker(Tracker):
    """Write event files.

    Args:
        run_dir: the run's folder.
        step: optimizer steps done. TensorBoard forgets what an earlier start logged after them.
        say: called with one-line messages for the user.

    Raises:
        UserError: TensorBoard is not installed.
    """

    def __init__(self, run_dir: Path, step: int, say: Callable[[str], None] = print) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                f"track.tensorboard is true, but TensorBoard cannot be imported: {error}\n"
                "Install it with: pip install 'paretrain[tensorboard]'\n"
                "or train without it: track.tensorboard=false"
            ) from error
        self._writer = Guard("tensorboard", SummaryWriter(run_dir / FOLDER, purge_step=step + 1), say)
        say(f"tensorboard: tensorboard --logdir {run_dir / FOLDER}")

    def log(self, record: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        if record["kind"] not in CURVES:
            return
        numbers = flatten(record)
        step = int(numbers.pop("step"))
        self._writer.use(lambda writer: [writer.add_scalar(name, number, step) for name, number in numbers.items()])

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """See `Tracker`."""
        self._writer.end(lambda writer: writer.close())
