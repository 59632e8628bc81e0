"""train.profile: traces of some steps by torch's profiler, one file for each of the chosen ranks in `RUN/profile`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from trainer.config.sections.train import ProfileConfig
from trainer.observe.observers import writing_records

FOLDER = "profile"


@contextmanager
def profiled(config: ProfileConfig | None, run_dir: Path, rank: int) -> Iterator[Callable[[int], None]]:
    """Give the block a function to be called before each step with the step's number, from 1.

    The trace has everything from there: loading, the step, what is published and saved. A run that ends or stops inside
    the steps leaves the trace of those it has made.

    Args:
        config: train.profile.
        run_dir: the run's folder.
        rank: this process.

    Raises:
        RankError: the trace cannot be written.
    """
    if config is None or rank not in config.ranks:
        yield lambda step: None
        return
    recorded: profile | None = None
    path = run_dir / FOLDER / f"steps_{config.start}_to_{config.start + config.steps - 1}.rank_{rank}.json.gz"

    def at(step: int) -> None:
        nonlocal recorded
        if step == config.start:
            on_gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            recorded = profile(activities=[ProfilerActivity.CPU, *on_gpu])
            recorded.start()
        elif step == config.start + config.steps:
            end()

    def end() -> None:
        nonlocal recorded
        if recorded is None:
            return
        recorded.stop()
        with writing_records():
            path.parent.mkdir(exist_ok=True)
            recorded.export_chrome_trace(str(path))
        recorded = None

    yield at
    end()
