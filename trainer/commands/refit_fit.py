"""The linear heads that `paretrain refit` may put in place of a run's own, fitted from one pass over the train split.

Least squares need second moments alone, which are summed over ranks. Logistic regression and the theory's estimates
need rows: random ones are kept.

Shapes: B samples of a batch, N samples, D representation width, C columns of labels, O outputs of a task.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from models import Classification, Task
from paretrain.theory.coupling import Moments, estimate_moments
from paretrain.theory.coupling.closed_form import LinearFit, fit_alone, fit_by_theory, fit_coupled
from paretrain.theory.coupling.logistic import fit_logistic
from paretrain.theory.coupling.second_moments import Column, SecondMoments
from trainer.commands.representation import as_vectors, label_values, represented
from trainer.commands.trained import Trained
from trainer.errors import UserError
from trainer.runtime.polling import run_while_polling

NUM_ESTIMATED = 300
"""Kept samples that similarity and noise are estimated from."""
MAX_KEPT_NUMBERS = 2**24
"""Kept samples x D: 64 MiB, and seconds for each task's logistic regression."""
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)
"""Penalties of logistic regression, in units of the features' mean variance."""
SEED = 0

Head = tuple[Tensor, Tensor]
"""Weights (O x D) and biases (O)."""


@dataclass(frozen=True)
class Fits:
    """Each task's fitted heads by name, and the least squares' mean cross-validated error over the labels' variance."""

    heads: Sequence[Mapping[str, Head]]
    validated: Mapping[str, float]


@dataclass(frozen=True)
class _Read:
    """Second moments of all samples of all ranks; representation and labels of random ones, in random order."""

    moments: SecondMoments
    kept_ND: np.ndarray
    kept_NC: np.ndarray


def fit_heads(run: Trained, ids_N: np.ndarray) -> Fits:
    """Fit all heads to these train samples. Collective: each rank reads its part, and rank 0 fits.

    Raises:
        UserError: a sample cannot be used, or a task has no two different labels.
    """
    read = _read(run, ids_N)
    fits = run_while_polling(run.runtime, lambda: _fit(run, read) if run.runtime.is_main else None)
    found = run.runtime.gather(fits)[0]
    assert found is not None, "rank 0 has fitted"
    return found


def _read(run: Trained, ids_N: np.ndarray) -> _Read:
    if not len(ids_N):
        raise UserError("no train sample is left to fit the heads on")
    runtime = run.runtime
    z, targets = run_while_polling(runtime, lambda: next(represented(run, "train", ids_N[:256])))
    origin_D = as_vectors(z).mean(axis=0)
    moments = SecondMoments(origin_D, label_values(run.specs, targets).shape[1])
    most = max(NUM_ESTIMATED, MAX_KEPT_NUMBERS // len(origin_D))
    kept_ids_N = np.random.default_rng(SEED).permutation(ids_N)[:most]
    mine_N = ids_N[runtime.rank :: runtime.world_size]
    kept = run_while_polling(runtime, lambda: list(_add(run, moments, mine_N, kept_ids_N)))
    moments.sum_over(runtime.gather(moments.groups), lambda array: runtime.sum(torch.from_numpy(array)).numpy())
    parts = [part for of_rank in runtime.gather(kept) for part in of_rank]
    found_N, kept_ND, kept_NC = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order_N = np.argsort(found_N)[np.argsort(np.argsort(kept_ids_N))]  # the same on any number of ranks
    return _Read(moments, kept_ND[order_N], kept_NC[order_N])


def _add(
    run: Trained, moments: SecondMoments, ids_N: np.ndarray, kept_ids_N: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Add samples to the moments; yield ids, representation and labels of those to keep."""
    done = 0
    for z, targets in represented(run, "train", ids_N):
        z_BD, labels_BC = as_vectors(z), label_values(run.specs, targets)
        moments.add(z_BD, labels_BC)
        ids_B = ids_N[done : done + len(z_BD)]
        keep_B = np.isin(ids_B, kept_ids_N)
        yield ids_B[keep_B], z_BD[keep_B], labels_BC[keep_B]
        done += len(z_BD)


def _fit(run: Trained, read: _Read) -> Fits:
    try:
        columns = read.moments.columns()
    except ValueError as error:
        raise UserError(f"{error}: expected two different labels for each task; leave it out of data.tasks") from error
    least_squares = _least_squares(run.tasks, columns, read)
    scale = float(read.kept_ND.var(axis=0).mean()) or 1.0
    heads, start = [], 0
    for number, task in enumerate(run.tasks):
        place = slice(start, start + _num_columns(task))
        labels_NC = read.kept_NC[:, place]
        known_N = ~np.isnan(labels_NC[:, 0])
        z_ND, labels_NC = read.kept_ND[known_N], labels_NC[known_N]
        found = {fit.name: _as_head(task, fit, place, z_ND, labels_NC) for fit in least_squares}
        if isinstance(task, Classification) and known_N.any():
            ridges = [scale * ridge for ridge in RIDGES]
            fitted = fit_logistic(z_ND, _classes(labels_NC), task.num_outputs, ridges, _trained_head(run, number))
            names = [f"logistic, ridge {ridge:.2g}" for ridge in ridges]
            found |= {name: _tensors(*weights) for name, weights in zip(names, fitted, strict=True)}
        heads.append(found)
        start = place.stop
    return Fits(heads, {fit.name: float(fit.validated_C.mean()) for fit in least_squares})


def _least_squares(tasks: Sequence[Task], columns: Sequence[Column], read: _Read) -> list[LinearFit]:
    """Return the heads alone, coupled, and as theory has it, where they can be had."""
    alone = fit_alone(columns)
    blocks = _blocks(tasks)
    if not blocks:
        return [alone]
    estimated = _estimate(blocks, read, np.array([column.deviation for column in columns]))
    coupled = fit_coupled(columns, blocks, alone)
    by_theory = fit_by_theory(columns, blocks, estimated, alone) if estimated else None
    return [fit for fit in (alone, coupled, by_theory) if fit is not None]


def _blocks(tasks: Sequence[Task]) -> list[list[int]]:
    """Return the columns that are coupled: of tasks with as many columns, those at the same place, such as a class."""
    starts: dict[int, list[int]] = {}
    start = 0
    for size in map(_num_columns, tasks):
        starts.setdefault(size, []).append(start)
        start += size
    return [
        [start + place for start in alike] for size, alike in starts.items() if len(alike) > 1 for place in range(size)
    ]


def _num_columns(task: Task) -> int:
    return 1 if task.num_outputs <= 2 else task.num_outputs


def _estimate(blocks: Sequence[Sequence[int]], read: _Read, deviation_C: np.ndarray) -> list[Moments]:
    """Estimate each block's moments from a few samples; nothing where a column has too few labels among them."""
    z_ND, labels_NC = read.kept_ND[:NUM_ESTIMATED], read.kept_NC[:NUM_ESTIMATED] / deviation_C
    known_C = (~np.isnan(labels_NC)).sum(axis=0)
    if known_C.min() < 6 or (np.nanmin(labels_NC, axis=0) == np.nanmax(labels_NC, axis=0)).any():
        return []
    return [estimate_moments(z_ND - z_ND.mean(axis=0), labels_NC[:, block]) for block in blocks]


def _as_head(task: Task, fit: LinearFit, place: slice, z_ND: np.ndarray, labels_NC: np.ndarray) -> Head:
    """Return a least-squares fit as a head; logits are scaled to the smallest cross-entropy of some samples."""
    weight_OD, bias_O = fit.weights_DC[:, place].T, fit.intercepts_C[place]
    if not isinstance(task, Classification):
        return _tensors(weight_OD, bias_O)
    if len(bias_O) == 1:  # An estimate of P(second class): half way, both logits are 0.
        weight_OD, bias_O = (np.concatenate([-one, one]) for one in (weight_OD, bias_O - 0.5))
    scale = _best_scale(z_ND @ weight_OD.T + bias_O, _classes(labels_NC))
    return _tensors(scale * weight_OD, scale * bias_O)


def _classes(labels_NC: np.ndarray) -> np.ndarray:
    """Return the class of each sample from its columns of zeros and ones."""
    classes_N: np.ndarray = labels_NC[:, 0].astype(int) if labels_NC.shape[1] == 1 else labels_NC.argmax(axis=1)
    return classes_N


def _best_scale(outputs_NO: np.ndarray, class_N: np.ndarray) -> float:
    """Return the factor with which the outputs are the best logits."""
    if not len(class_N):
        return 1.0
    outputs, classes = torch.from_numpy(outputs_NO), torch.from_numpy(class_N)
    found = minimize_scalar(
        lambda log: float(F.cross_entropy(float(np.exp(log)) * outputs, classes)), bounds=(-2, 5), method="bounded"
    )
    return float(np.exp(found.x))


def _trained_head(run: Trained, task: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the trained head's weights and biases if it is linear."""
    tensors = list(run.network.head_state(task).values())
    if len(tensors) != 2 or tensors[0].dim() != 2 or tensors[0].shape[1] != run.network.encoder.width:
        return None
    weight_OD, bias_O = (tensor.double().cpu().numpy() for tensor in tensors)
    return weight_OD, bias_O


def _tensors(weight_OD: np.ndarray, bias_O: np.ndarray) -> Head:
    return torch.from_numpy(weight_OD).float(), torch.from_numpy(bias_O).float()
