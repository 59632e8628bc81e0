"""Decide which refitted heads are better than the trained ones, on samples that they were not fitted to.

The best fitted head of a task is chosen on one half of the samples and judged on the other, and the other way round: no
head is judged by the samples that it was chosen on.

Shapes: B samples of a batch, N samples, O outputs of a task, H heads of a task (the trained one first), T tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models import Task
from trainer.commands.refit_fit import Head
from trainer.commands.representation import as_vectors, represented
from trainer.commands.trained import Trained
from trainer.runtime.polling import run_while_polling

TRAINED = "as trained"
SEED = 0
STANDARD_ERRORS = 2
"""By which the loss of a new head is smaller than the trained one's."""


@dataclass(frozen=True)
class Change:
    """A mean over samples with the trained head and with the best fitted one, and the standard error of the change."""

    before: float
    after: float
    error: float

    def __str__(self) -> str:
        return f"{self.after - self.before:+.3g} ± {self.error:.2g}"


@dataclass(frozen=True)
class Verdict:
    """Which head a task gets, the trained one or a fitted one by its name, and why.

    `best` is the fitted head with the smallest loss; `error` (in the task's unit) and `loss` compare it with the
    trained one. None: no sample has a label.
    """

    task: str
    unit: str
    samples: int
    head: str
    best: str
    error: Change | None
    loss: Change | None


def judge(run: Trained, fitted: Sequence[Mapping[str, Head]], split: str, ids_N: np.ndarray) -> list[Verdict]:
    """Compare each task's fitted heads with its trained one on these samples. Collective.

    A task gets a new head where its loss is smaller by STANDARD_ERRORS or more and its error is not larger.

    Raises:
        UserError: a sample cannot be used.
    """
    runtime = run.runtime
    half_N = np.random.default_rng(SEED).integers(2, size=len(ids_N))
    mine_N = slice(runtime.rank, None, runtime.world_size)
    local = run_while_polling(runtime, lambda: _sums(run, fitted, split, ids_N[mine_N], half_N[mine_N]))
    sums = [runtime.sum(sums_2H7) for sums_2H7 in local]
    return [
        _verdict(task, list(heads), sums_2H7.numpy())
        for task, heads, sums_2H7 in zip(run.tasks, fitted, sums, strict=True)
    ]


def _sums(
    run: Trained, fitted: Sequence[Mapping[str, Head]], split: str, ids_N: np.ndarray, half_N: np.ndarray
) -> list[Tensor]:
    """Return the sums of `_values` over this rank's samples (2 halves x H x 7) for each task."""
    sums = [torch.zeros(2, 1 + len(heads), 7, dtype=torch.float64) for heads in fitted]
    stacked = [[torch.stack(parts) for parts in zip(*heads.values(), strict=True)] for heads in fitted]
    done = 0
    for z, targets in represented(run, split, ids_N):
        with torch.no_grad():
            outputs = run.network.heads(z, None)
        trained = list(outputs.unbind(dim=1)) if isinstance(outputs, Tensor) else outputs
        z_BD = torch.from_numpy(as_vectors(z)).float()
        half_B = torch.from_numpy(half_N[done : done + len(z_BD)])
        for sums_2H7, task, old_BO, (weight_HOD, bias_HO) in zip(sums, run.tasks, trained, stacked, strict=True):
            new_BHO = F.linear(z_BD, weight_HOD.flatten(0, 1)).unflatten(1, bias_HO.shape) + bias_HO
            outputs_BHO = torch.cat([old_BO.cpu()[:, None], new_BHO], dim=1)
            values_BH7 = _values(task, outputs_BHO, torch.from_numpy(targets[task.name]))
            sums_2H7.index_add_(0, half_B, values_BH7)
        done += len(z_BD)
    return sums


def _values(task: Task, outputs_BHO: Tensor, target_B: Tensor) -> Tensor:
    """Return 1, loss, its change and that squared, the same of the error (B x H x 7); zeros where there is no label."""
    heads = outputs_BHO.shape[1]
    target_1BH = target_B[None, :, None].expand(1, len(target_B), heads)
    # Losses and measures are sums over the first axis: over one sample.
    loss_BH, labelled_BH = task.loss(outputs_BHO[None], target_1BH)
    error_BH, _ = task.measure(outputs_BHO[None], target_1BH)
    values = [labelled_BH.double()]
    for value_BH in (loss_BH.double(), error_BH.double()):
        change_BH = value_BH - value_BH[:, :1]
        values += [value_BH, change_BH, change_BH**2]
    return torch.stack(values, dim=2)


def _verdict(task: Task, names: Sequence[str], sums_2H7: np.ndarray) -> Verdict:
    total_H7 = sums_2H7.sum(axis=0)
    samples = round(total_H7[0, 0])
    best = int(total_H7[1:, 1].argmin())
    if not samples:
        return Verdict(task.name, task.unit, 0, TRAINED, names[best], None, None)
    chosen = [1 + int(sums_2H7[1 - half, 1:, 1].argmin()) for half in (0, 1)]
    crossed_7 = sum(sums_2H7[half, one] for half, one in enumerate(chosen))
    loss = _change(samples, total_H7[0, 1], crossed_7[1:4], 1.0)
    error = _change(samples, total_H7[0, 4], crossed_7[4:7], task.scale)
    is_better = loss.after - loss.before < -STANDARD_ERRORS * loss.error and error.after <= error.before
    return Verdict(task.name, task.unit, samples, names[best] if is_better else TRAINED, names[best], error, loss)


def _change(samples: int, before: float, sums_3: np.ndarray, scale: float) -> Change:
    after, change, square = sums_3 / samples
    variance = max(square - change**2, 0) / (samples - 1) if samples > 1 else float("inf")
    return Change(scale * before / samples, scale * after, scale * float(variance**0.5))
