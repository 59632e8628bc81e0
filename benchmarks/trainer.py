"""Time the whole training against a bare loop of DDP:  python -m benchmarks.trainer [--quick] [--processes 2]

configs/digits.yaml, the smallest model, where what a step costs beside the network counts most. Ours is `paretrain
train`: shards, checks, agreement, α, logs. The bare loop has the same network inside DDP, the images of 40 batches in
memory as the network takes them, the sum of the losses, and AdamW. A third loop is the bare one with the four small
messages that a step of ours sends: the agreement on it, the counts, the Gram matrix to rank 0, and α from there. They
take turns, each in processes of its own. Start, evaluation and checkpoints do not count. A ratio is the median of the
ratios of the turns. stderr shows how far it is; the last line printed is one JSON object:

    speed_ratio               samples/s of ours / of the bare loop; the aim is 0.92
    messages_ratio            samples/s of the bare loop with the messages / of the bare loop
    samples_per_second        of ours, median
    bare_samples_per_second   of the bare loop, median
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.ranks import on_every_rank
from models import task_losses
from trainer.config.file import load_config
from trainer.data.sources.digits import write_digits
from trainer.observe.metrics import read_metrics
from trainer.runtime.distributed import joined
from trainer.training.build_run import build_run
from trainer.training.prepare_data import open_data

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "digits.yaml"
BATCHES = 40
LOG_EVERY = 50
MESSAGE_NUMBERS = 16
"""About as many as the messages of two tasks have."""
TURNS = {True: 1, False: 3}
STEPS = {True: 300, False: 1000}


class Turn(NamedTuple):
    """Samples/s of the three loops."""

    ours: float
    bare: float
    with_messages: float


def bare_speed(overrides: list[str], steps: int, messages: bool) -> float:
    """Return the samples/s of the bare loop on this rank; the first LOG_EVERY steps warm up.

    Args:
        overrides: of the configuration.
        steps: how many.
        messages: send the messages of a step of ours, too, where it sends them.
    """
    experiment = load_config(CONFIG, overrides)
    with joined(experiment.parallel) as runtime:
        run = build_run(experiment, open_data(experiment.data, runtime), runtime)
        batches = [run.to_device(batch) for batch in islice(run.train_batches, BATCHES)]
        model, tasks = run.learner.engine.model, run.learner.tasks
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        message = torch.zeros(MESSAGE_NUMBERS, dtype=torch.float64)
        if messages:
            run.learner.network.encoder.register_forward_hook(partial(_send_in_backward, message))
        started = time.perf_counter()
        for step, batch in enumerate(islice(cycle(batches), steps)):
            if step == LOG_EVERY:
                started = time.perf_counter()
            if messages:
                dist.all_reduce(message)
            sums_T, counts_T = task_losses(tasks, model(batch.inputs), batch.targets)
            if messages:
                dist.all_reduce(message)
            (sums_T / counts_T).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        seconds = time.perf_counter() - started
        run.close()
    return (steps - LOG_EVERY) * experiment.train.global_batch / seconds


def _send_in_backward(message: Tensor, encoder: nn.Module, inputs: Any, z: Tensor) -> None:
    """Reduce and broadcast a message as soon as z has its gradient."""

    def send(gradient: Tensor) -> None:
        dist.reduce(message, 0)
        dist.broadcast(message, 0)

    z.register_hook(send)


def our_speed(overrides: list[str], steps: int, run_dir: Path) -> float:
    """Return the samples/s of the command, by its own metrics; the first record warms up."""
    command = [sys.executable, "-m", "trainer", "train", str(CONFIG), *overrides, f"name={run_dir.name}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise ChildProcessError(done.stderr)
    records = [record for record in read_metrics(run_dir / "metrics.jsonl") if record["kind"] == "train"][1:]
    if records[-1]["step"] != steps:
        raise ChildProcessError(f"the run ended at step {records[-1]['step']}")
    # Between two records lie equally many samples.
    return statistics.harmonic_mean([record["samples_per_second"] for record in records])


def measure(processes: int, quick: bool, folder: Path) -> list[Turn]:
    """Return the samples/s of each turn."""
    write_digits(folder / "digits")
    steps = STEPS[quick]
    length = [f"train.{key}={steps}" for key in ("steps", "eval_every_steps")]
    overrides = [
        f"data.path={folder / 'digits'}",
        f"output={folder / 'runs'}",
        f"parallel.processes={processes}",
        f"train.log_every_steps={LOG_EVERY}",
        f"checkpoint.every_steps={steps}",
        *length,
    ]
    turns = []
    for turn in range(TURNS[quick]):
        _say(f"turn {turn + 1} of {TURNS[quick]}: paretrain train, {steps:,} steps")
        ours = our_speed(overrides, steps, folder / "runs" / f"turn{turn}")
        _say(f"turn {turn + 1} of {TURNS[quick]}: {ours:,.0f} samples/s. Now the bare loops")
        bare, with_messages = (min(on_every_rank(processes, bare_speed, overrides, steps, m)) for m in (False, True))
        turns.append(Turn(ours, bare, with_messages))
    return turns


def _say(progress: str) -> None:
    print(progress, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainer", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one turn of 300 steps in place of three of 1,000")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        turns = measure(arguments.processes, arguments.quick, Path(folder))
    table = Table("turn", "ours (samples/s)", "bare (samples/s)", "bare, messages (samples/s)", "ours / bare")
    for number, turn in enumerate(turns):
        speeds = (f"{speed:,.0f}" for speed in turn)
        table.add_row(str(number), *speeds, f"{turn.ours / turn.bare:.3f}")
    Console(width=100).print(table)
    print(
        json.dumps(
            {
                "speed_ratio": round(statistics.median(turn.ours / turn.bare for turn in turns), 3),
                "messages_ratio": round(statistics.median(turn.with_messages / turn.bare for turn in turns), 3),
                "samples_per_second": round(statistics.median(turn.ours for turn in turns)),
                "bare_samples_per_second": round(statistics.median(turn.bare for turn in turns)),
                "turns": len(turns),
                "processes": arguments.processes,
            }
        )
    )


if __name__ == "__main__":
    main()
