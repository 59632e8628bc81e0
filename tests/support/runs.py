"""Runs in the background, and what runs leave, to be compared."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from tests.support.command import ROOT, command_line, environment
from trainer.observe.metrics import read_metrics
from trainer.runtime.checkpoints.pieces import Tensors, read_pieces
from trainer.runtime.checkpoints.values import read_values

CLOCK = {
    "time",
    "seconds",
    "duration_seconds",
    "samples_per_second",
    "samples_per_second_per_process",
    "data_wait_percent",
    "tflops_per_process",
    "mfu_percent",
    "memory_mib",
    "peak_memory_mib",
}
"""What two equal runs may differ in."""


def numbers(run_dir: Path) -> list[dict[str, Any]]:
    """The run's metrics without the clock."""
    return [
        {key: value for key, value in record.items() if key not in CLOCK}
        for record in read_metrics(run_dir / "metrics.jsonl")
    ]


def without_times(log: Path) -> str:
    """The text of log.txt without the time at the start of each line."""
    return "".join(line.partition(" ")[2] for line in log.read_text(encoding="utf-8").splitlines(keepends=True))


def checkpoint(run_dir: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], list[torch.Tensor]]:
    """The last checkpoint: parameters; step, cursor, optimizer and weighting; each rank's random generator."""
    folder = run_dir / "checkpoints" / (run_dir / "checkpoints" / "LATEST").read_text()
    state = read_values(folder / "state.safetensors")
    del state["seconds"], state["fingerprint"], state["eval_split"]
    for place in state["sources"].values():
        del place["bad_samples"]
    (state["selection"] or {}).pop("rule", None)  # Words, which assert_close cannot compare.
    state["optimizer"] = saved(folder, "optimizer")
    generators = [read_values(path)["torch"] for path in sorted(folder.glob("generators_*.safetensors"))]
    return saved(folder, "model"), state, generators


def saved(checkpoint: Path, what: str) -> dict[str, torch.Tensor]:
    """The whole tensors of the `model` or the `optimizer`, from the pieces that the ranks have written."""
    return dict(Tensors(read_pieces(sorted(checkpoint.glob(f"{what}_*.safetensors")))))


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """The real command, running; it is gone at the end of the block."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command_line(*arguments), cwd=ROOT, env=environment(), stdout=pipe, stderr=pipe, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_rank(process: subprocess.Popen[str], rank: int, until: Path) -> int:
    """The process id of a rank of the launched run, as soon as `until` exists."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if until.exists():
            for child in psutil.Process(process.pid).children(recursive=True):
                if child.environ().get("RANK") == str(rank):
                    return child.pid
        time.sleep(0.01)
    raise AssertionError(f"rank {rank} was not seen before {until} in time")
