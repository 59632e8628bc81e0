"""`paretrain conflicts`: do the tasks conflict, beyond noise, and where: at the representation or in the parameters?

Shapes: K batches, T tasks, P parameters of the encoder.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import training_losses
from models.freezing import trained
from paretrain import BalanceError
from paretrain.gram import gram
from trainer.commands.conflicts_estimate import (
    Conflicts,
    Moment,
    agreeing_groups,
    conflicts,
    corrected_min_norm,
    verdict,
)
from trainer.commands.conflicts_page import conflicts_page
from trainer.config.machine import num_cores
from trainer.config.schema import Experiment
from trainer.config.sections.train import AccumulationConfig
from trainer.data.reading.batch import Batch
from trainer.errors import UserError
from trainer.files import make_folder, refuse_unwritable, replace
from trainer.observe.report.frame import refuse_no_page
from trainer.runtime.distributed import joined
from trainer.terminal import Terminal
from trainer.training.build_run import build_run
from trainer.training.gradients import forward_backward
from trainer.training.no_trace import leaving_no_trace
from trainer.training.optimizer.schedule import learning_rate
from trainer.training.prepare_data import open_data
from trainer.training.run import Run
from trainer.training.step import train_step

MAX_BLOCKS = 12
"""Blocks of the encoder that a page has room for."""
GROUPS = 3
"""Groups of batches, whose noise is independent; see `corrected_min_norm`."""


def find_conflicts(experiment: Experiment, out: Path, batches: int, steps: int) -> Path:
    """Measure the conflicts of the tasks on one process; print a sentence, and write a page and its numbers.

    Args:
        experiment: its global batch goes through one process, whatever parallel.processes says.
        out: NAME.html; the numbers become NAME.json.
        batches: to measure, a multiple of 3.
        steps: to train before a second measurement; 0: none.

    Raises:
        UserError: the encoder is frozen, the run cannot be built, or the page cannot be written.
    """
    refuse_no_page(out)
    if batches % GROUPS:
        raise UserError(f"--batches {batches}: expected a multiple of {GROUPS}, such as {batches + -batches % GROUPS}")
    refuse_unwritable(out)
    experiment = _alone(experiment)
    with joined(experiment.parallel) as runtime:
        run = build_run(experiment, open_data(experiment.data, runtime), runtime)
        if not trained(run.learner.network.encoder):
            raise UserError("the whole encoder is frozen: tasks share nothing that is trained, so none can conflict")
        try:
            moments = [measure(run, batches)]
            if steps:
                _train(run, steps)
                moments.append(measure(run, batches))
        except BalanceError as error:
            raise UserError(f"the gradients cannot be measured: {error}") from error
        finally:
            run.close()
    tasks = run.task_names
    sentence = verdict(moments[-1].at_z, moments[-1].in_parameters, tasks)
    make_folder(out.parent)
    source = f"{experiment.name}: {batches} batches of {experiment.train.global_batch} samples, on one process"
    replace(out, conflicts_page(source, tasks, moments, sentence).encode())
    plain = {"sentence": sentence, "source": source, "tasks": tasks, "moments": [_plain(moment) for moment in moments]}
    replace(out.with_suffix(".json"), f"{json.dumps(plain, indent=1)}\n".encode())
    Terminal(soft_wrap=True).print(f"{sentence[:1].upper()}{sentence[1:]}.\n{source}\npage: {out}")
    return out


def measure(run: Run, batches: int) -> Moment:
    """Measure the next batches of a run at its present weights, which stay as they are."""
    learner, at_z, blocks_KTT, sums_3TP = run.learner, [], [], [torch.zeros(())] * GROUPS
    names = {name: parameter.numel() for name, parameter in trained(learner.network.encoder).items()}
    parts = blocks(list(names))
    for number in range(batches):
        batch = run.to_device(next(run.train_batches))
        gradients_TP = _encoder_gradients(run, batch)
        with leaving_no_trace(learner):
            balance = forward_backward(learner, batch)
        learner.engine.discard()
        if balance.gram_TT is None:  # A sound step on rank 0 has one, unless it has thousands of tasks.
            raise UserError(
                f"a step with {len(run.task_names):,} tasks forms no Gram matrix, and the conflicts are read from it. "
                "Add balance.normalise=l2, with which it does"
            )
        at_z.append(balance.gram_TT)
        pieces = dict(zip(names, gradients_TP.split(list(names.values()), dim=1), strict=True))
        blocks_KTT.append([sum(gram(pieces[name]).cpu().numpy() for name in part) for part in parts.values()])
        sums_3TP[number % GROUPS] = sums_3TP[number % GROUPS] + gradients_TP.cpu()
    grams_KLTT = np.array(blocks_KTT)
    means_TP = torch.cat([sum_TP / (batches // GROUPS) for sum_TP in sums_3TP])
    num_tasks = len(run.task_names)
    cross = gram(means_TP).numpy().reshape(GROUPS, num_tasks, GROUPS, num_tasks).transpose(0, 2, 1, 3)
    in_parameters = conflicts(grams_KLTT.sum(axis=1))
    return Moment(
        step=run.step,
        at_z=conflicts(np.array(at_z)),
        in_parameters=in_parameters,
        in_blocks={name: conflicts(grams_KLTT[:, place]) for place, name in enumerate(parts)},
        corrected=corrected_min_norm(cross),
        groups=agreeing_groups(in_parameters),
    )


def _encoder_gradients(run: Run, batch: Batch) -> Tensor:
    """Return each task's gradient with respect to the encoder's trained parameters, (T, P)."""
    learner = run.learner
    with leaving_no_trace(learner):
        sums_T, counts_T = training_losses(learner.tasks, learner.network(batch.inputs), batch.targets)
        return learner.balancer.parameter_gradients(sums_T, counts_T, list(trained(learner.network.encoder).values()))


def blocks(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the encoder's parts with the names of their parameters: by the first words of these names.

    One word is taken, or as many as it needs to tell three parts apart, but at most `MAX_BLOCKS` of them.
    """
    found: dict[str, list[str]] = {}
    for depth in (1, 2, 3):
        parts: dict[str, list[str]] = {}
        for name in names:
            words = name.split(".")
            parts.setdefault(".".join(words[: min(depth, max(1, len(words) - 1))]), []).append(name)
        if not found or len(parts) <= MAX_BLOCKS:
            found = parts
        if len(found) >= GROUPS:
            break
    return found if len(found) <= MAX_BLOCKS else {"encoder": list(names)}


def _alone(experiment: Experiment) -> Experiment:
    """Return the experiment on one process, with α at the representation and one backward a batch."""
    return experiment.model_copy(
        update={
            "parallel": experiment.parallel.model_copy(
                update={
                    "processes": 1,
                    "strategy": "single",
                    "threads": min(experiment.parallel.threads, num_cores()),
                }
            ),
            "balance": experiment.balance.model_copy(
                update={
                    "space": "representation",
                    "groups": {},
                    "every_steps": 1,
                    "adaptive": None,
                    "monitor_every_steps": None,
                    "on_nonfinite": "stop",
                }
            ),
            "train": experiment.train.model_copy(update={"accumulation": AccumulationConfig()}),
            "data": experiment.data.model_copy(update={"workers": min(experiment.data.workers, num_cores())}),
        }
    )


def _train(run: Run, steps: int) -> None:
    for _ in range(steps):
        batch = run.to_device(next(run.train_batches))
        train_step(run.learner, batch, learning_rate(run.step, run.experiment.train.steps, run.experiment.optimizer))
        run.count_step()


def _plain(moment: Moment) -> dict[str, Any]:
    value, error = moment.corrected
    return {
        "step": moment.step,
        "representation": _numbers(moment.at_z),
        "parameters": {
            **_numbers(moment.in_parameters),
            "min_norm_corrected": _number(value),
            "min_norm_corrected_error": _number(error),
        },
        "blocks": {name: _numbers(found) for name, found in moment.in_blocks.items()},
        "groups": [list(group) for group in moment.groups],
    }


def _numbers(found: Conflicts) -> dict[str, Any]:
    return {
        "cosine": [[_number(value) for value in row] for row in found.cosine_TT],
        "cosine_error": [[_number(value) for value in row] for row in found.error_TT],
        "length": found.length_T.tolist(),
        "slope_of_equal_weights": [_number(value) for value in found.uniform_T],
        "slope_error": [_number(value) for value in found.uniform_error_T],
        "min_norm": _number(found.min_norm),
        "min_norm_error": _number(found.min_norm_error),
        "opposing_pairs": [list(pair) for pair in found.opposing],
    }


def _number(value: float) -> float | None:
    """Return a number for JSON, which has no NaN."""
    return None if np.isnan(value) else round(float(value), 6)
