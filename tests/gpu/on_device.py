"""What the tests on GPUs run on each rank. The device is an argument, so that a test can run all of it on the CPU."""

import io
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from benchmarks.ranks import on_every_rank
from models import checkpoint_activations
from tests.support.strategies import CASES, new_engine, train, whole, write
from trainer.commands.measure import measure_sizes
from trainer.commands.memory import estimate_memory
from trainer.config.schema import Experiment
from trainer.config.sections.parallel import ParallelConfig
from trainer.runtime.distributed import joined
from trainer.runtime.engines.strategies import build_engine
from trainer.training.build_run import build_run
from trainer.training.gradients import forward_backward
from trainer.training.prepare_data import open_data

CASE = CASES["ResNet, stacked heads, AdamW"]
NUM_STEPS = 10


def on_ranks(processes: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call `function(*arguments)` on every rank of this machine. Returns the answers in rank order."""
    answers = on_every_rank(processes, _as_bytes, function, *arguments)
    return [torch.load(io.BytesIO(answer), weights_only=False) for answer in answers]


def _as_bytes(function: Callable[..., Any], *arguments: Any) -> bytes:
    """A tensor sent as such lives in shared memory that ends with its process."""
    answer = io.BytesIO()
    torch.save(function(*arguments), answer)
    return answer.getvalue()


def settings(device: str, strategy: str, processes: int, **others: Any) -> ParallelConfig:
    values = {"device": device, "strategy": strategy, "processes": processes, **others}
    return ParallelConfig.model_validate(values, strict=False)


def alphas_and_parameters(
    device: str, strategies: Sequence[str], processes: int
) -> dict[str, tuple[Tensor, Mapping[str, Tensor]]]:
    """α of every step, and the parameters at the end, under each strategy."""
    found = {}
    with joined(settings(device, "fsdp2", processes)) as runtime:  # fsdp2 has a process group for one process, too.
        for strategy in strategies:
            engine = new_engine(strategy, CASE, runtime)
            alphas = [alpha.cpu() for alpha in train(engine, CASE, range(NUM_STEPS), runtime)]
            found[strategy] = torch.stack(alphas), whole(engine.model_pieces(), runtime)
    return found


def saved_and_read(device: str, strategies: Sequence[str], processes: int, folder: Path) -> list[str]:
    """The strategies under which a checkpoint holds other tensors than the engine that wrote it."""
    differ = []
    with joined(settings(device, "fsdp2", processes)) as runtime:
        for strategy in strategies:
            engine = new_engine(strategy, CASE, runtime)
            train(engine, CASE, [1], runtime)
            again = new_engine(strategy, CASE, runtime, write(engine, folder / strategy, runtime))
            for pieces in ("model_pieces", "optimizer_pieces"):
                ours, theirs = (whole(getattr(one, pieces)(), runtime) for one in (engine, again))
                if ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in ours):
                    differ.append(f"{strategy}: {pieces}")
    return differ


def second_alpha(device: str, precision: str, how: str) -> Tensor:
    """α of the batch of step 1 at the initial parameters: compiled, with activation checkpointing, or plain."""
    with joined(settings(device, "single", 1, precision=precision)) as runtime:
        network = CASE.trained_model()
        if how == "checkpointed":
            checkpoint_activations(network.encoder)
        if how == "compiled":
            network.encoder.compile()
            network.heads.compile()
        engine = build_engine("single", network, CASE.optimizer, runtime, 1.0, precision)
        return train(engine, CASE, [1], runtime)[0].cpu()


def with_delays(device: str, strategy: str, processes: int, num_steps: int) -> list[Tensor]:
    """α of every step, where each rank begins each forward late by a random time."""
    with joined(settings(device, strategy, processes)) as runtime:
        engine = new_engine(strategy, CASE, runtime)
        random = Random(runtime.rank)
        alphas = []
        for step in range(num_steps):
            time.sleep(random.choice((0.0, 0.0, 0.002, 0.01)))
            alphas += train(engine, CASE, [step % 7 + 1], runtime)
        return [alpha.cpu() for alpha in alphas]


def memory(device: str, digits: Path, output: Path) -> tuple[int, int]:
    """The bytes that `check` estimates for a step of ResNet-18 in bf16, and those that two steps took on a GPU."""
    values = {
        "name": "memory",
        "output": output,
        "data": {"path": str(digits)},
        "model": {"encoder": {"name": "resnet18"}, "head": {"name": "linear"}},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        "train": {"steps": 2, "global_batch": 400, "eval_every_steps": 2},
        "checkpoint": {"every_steps": 2},
        "parallel": {"device": device, "strategy": "single", "precision": "bf16"},
    }
    experiment = Experiment.model_validate(values, strict=False)
    with joined(experiment.parallel) as runtime:
        run = build_run(experiment, open_data(experiment.data, runtime), runtime)
        batch = run.to_device(next(run.train_batches))
        sizes = measure_sizes(run, batch)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            forward_backward(run.learner, batch)
            run.learner.engine.step()
        run.close()
        taken = torch.cuda.max_memory_allocated() if device == "cuda" else 0
        return estimate_memory(sizes, "single", 1).total, taken
