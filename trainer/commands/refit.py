"""`paretrain refit`: keep a run's encoder as it was trained, and fit all heads anew, linear, in closed form.

One process reads the train split once; the second moments are sums, which several processes could add up.

Shapes: B samples of a batch, N samples, D representation width, C columns of labels, O outputs of a task.
"""

import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.table import Table
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from models import Classification, MultiTaskModel, Task
from models.heads.task_heads import StackedHeads
from paretrain.theory.coupling import Moments, estimate_moments
from paretrain.theory.coupling.closed_form import LinearFit, SecondMoments, fit_alone, fit_by_theory, fit_coupled
from trainer.commands.representation import Trained, as_vectors, label_columns, label_values, trained
from trainer.config.file import parse_config
from trainer.config.schema import Experiment
from trainer.config.sections.model import HeadConfig
from trainer.errors import UserError
from trainer.files import replace
from trainer.observe.units import with_unit
from trainer.run_folder import claimed
from trainer.runtime.checkpoints.folder import CHECKPOINTS
from trainer.runtime.checkpoints.pieces import piece_of
from trainer.runtime.checkpoints.saving import Saver
from trainer.terminal import Terminal
from trainer.training.build import build_network
from trainer.training.restore import read_state

REFIT = "refit.json"
VALIDATION = ("validation", "valid", "val")
"""Names of a split to compare on; without one, a part of the train split is held out."""
HELD_OUT = 0.2
NUM_KEPT = 300
"""Train samples kept to estimate similarity and noise from, and the scale of the logits."""
SEED = 0


@dataclass(frozen=True)
class Compared:
    """A task's validation error with the trained head and with the new one, and the standard error of the change."""

    task: str
    unit: str
    samples: int
    before: float
    after: float
    error: float

    @property
    def is_worse(self) -> bool:
        """Whether the error has grown by more than two standard errors."""
        return self.after - self.before > 2 * self.error


@dataclass(frozen=True)
class Refit:
    """What was chosen, each candidate's cross-validated error over the labels' variance, and what became of errors.

    `mean_change` is the mean over tasks of the relative change of the error, with its standard error over samples.
    """

    chosen: str
    candidates: Mapping[str, float]
    tasks: Sequence[Compared]
    mean_change: float
    mean_change_error: float
    validated_on: str

    @property
    def worse(self) -> list[str]:
        """The tasks whose error has grown by more than noise; their mean, where it has."""
        mean = ["the mean over tasks"] if self.mean_change > 2 * self.mean_change_error else []
        return mean + [task.task for task in self.tasks if task.is_worse]


def refit_run(run_dir: Path, out: Path, step: int | None) -> Refit:
    """Fit the heads of the checkpoint of `step` (None: the last one) anew, print what it wins, and write a new run.

    The new run's folder has one checkpoint, of the same step, with linear heads, without towers and without a state of
    the optimizer; `eval` and `export` take it. What was measured stands in refit.json.

    Args:
        run_dir: a run's folder.
        out: the new one's, which must not exist.
        step: of the checkpoint.

    Raises:
        UserError: no such run or checkpoint, a task with targets for every pixel or with one label value only, or a
            folder that is there already or cannot be written.
    """
    if os.path.lexists(out):
        raise UserError(f"{out} is there already. Type another --out, or remove it first: rm -r {out}")
    with trained(run_dir, None, step) as run:
        experiment = _with_linear_heads(run.experiment, out)
        label_columns(run.specs)  # Refuses tasks with targets for every pixel, before anything is read.
        fit_N, split, compare_N = _divide(run)
        moments, kept_ND, kept_NC = _second_moments(run, fit_N)
        candidates = _candidates(run, moments, kept_ND, kept_NC)
        chosen = min(candidates, key=lambda fit: float(fit.validated_C.mean()))
        heads = _as_heads(run.tasks, chosen, kept_ND, kept_NC)
        refit = Refit(
            chosen.name,
            {fit.name: float(fit.validated_C.mean()) for fit in candidates},
            *_compare(run, heads, split, compare_N),
            split if split != "train" else f"{len(compare_N)} samples of the train split, held out of the refit alone",
        )
        _write(run, experiment, heads, refit)
    _print(run_dir, out, refit)
    return refit


def _divide(run: Trained) -> tuple[np.ndarray, str, np.ndarray]:
    """Return the train samples to fit, the split to compare on, and its samples."""
    manifest = run.data.manifest
    ids_N = np.arange(manifest.num_samples("train"))
    split = next((name for name in VALIDATION if name in manifest.splits), None)
    if split is not None:
        return ids_N, split, np.arange(manifest.num_samples(split))
    held_out_N = np.random.default_rng(SEED).random(len(ids_N)) < HELD_OUT
    return ids_N[~held_out_N], "train", ids_N[held_out_N]


def _second_moments(run: Trained, ids_N: np.ndarray) -> tuple[SecondMoments, np.ndarray, np.ndarray]:
    """Read the samples once; return the moments, and representation and labels of a random few."""
    specs = run.specs
    keep_N = np.zeros(len(ids_N), dtype=bool)
    keep_N[np.random.default_rng(SEED).permutation(len(ids_N))[:NUM_KEPT]] = True
    moments, kept, read = None, [], 0
    for z, targets in run.represented("train", ids_N):
        z_BD, labels_BC = as_vectors(z), label_values(specs, targets)
        moments = moments or SecondMoments(z_BD.shape[1], labels_BC.shape[1])
        moments.add(z_BD, labels_BC)
        keep_B = keep_N[read : read + len(z_BD)]
        kept.append((z_BD[keep_B], labels_BC[keep_B]))
        read += len(z_BD)
    if moments is None:
        raise UserError("no train sample is left to fit the heads on")
    kept_ND, kept_NC = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    return moments, kept_ND, kept_NC


def _candidates(run: Trained, moments: SecondMoments, kept_ND: np.ndarray, kept_NC: np.ndarray) -> list[LinearFit]:
    """Return the heads alone, coupled, and as theory has it, where they can be had."""
    try:
        columns = moments.columns()
    except ValueError as error:
        raise UserError(f"{error}: expected two different labels for each task; leave it out of data.tasks") from error
    alone = fit_alone(columns)
    blocks = _blocks(run.tasks)
    if not blocks:
        return [alone]
    estimated = _estimate(blocks, kept_ND, kept_NC, np.array([column.deviation for column in columns]))
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


def _estimate(
    blocks: Sequence[Sequence[int]], kept_ND: np.ndarray, kept_NC: np.ndarray, deviation_C: np.ndarray
) -> list[Moments]:
    """Estimate each block's moments from a few samples; nothing where a column has too few labels among them."""
    labels_NC = kept_NC / deviation_C
    known_C = (~np.isnan(labels_NC)).sum(axis=0)
    if known_C.min() < 6 or (np.nanmin(labels_NC, axis=0) == np.nanmax(labels_NC, axis=0)).any():
        return []
    return [estimate_moments(kept_ND - kept_ND.mean(axis=0), labels_NC[:, block]) for block in blocks]


def _as_heads(
    tasks: Sequence[Task], fit: LinearFit, kept_ND: np.ndarray, kept_NC: np.ndarray
) -> list[tuple[Tensor, Tensor]]:
    """Return each task's weights (O x D) and biases (O); logits are scaled to the smallest cross-entropy on a few."""
    heads, start = [], 0
    for task in tasks:
        size = _num_columns(task)
        weight_OD, bias_O = fit.weights_DC[:, start : start + size].T, fit.intercepts_C[start : start + size]
        labels_NC = kept_NC[:, start : start + size]
        if isinstance(task, Classification):
            if size == 1:  # An estimate of P(second class): half way, both logits are 0.
                weight_OD, bias_O = (np.concatenate([-one, one]) for one in (weight_OD, bias_O - 0.5))
                labels_NC = np.concatenate([1 - labels_NC, labels_NC], axis=1)
            known_N = ~np.isnan(labels_NC[:, 0])
            scale = _best_scale(kept_ND[known_N] @ weight_OD.T + bias_O, labels_NC[known_N].argmax(axis=1))
            weight_OD, bias_O = scale * weight_OD, scale * bias_O
        heads.append((torch.from_numpy(weight_OD).float(), torch.from_numpy(bias_O).float()))
        start += size
    return heads


def _best_scale(outputs_NO: np.ndarray, class_N: np.ndarray) -> float:
    """Return the factor with which the outputs are the best logits."""
    if not len(class_N):
        return 1.0
    outputs, classes = torch.from_numpy(outputs_NO), torch.from_numpy(class_N)
    found = minimize_scalar(
        lambda log: float(F.cross_entropy(float(np.exp(log)) * outputs, classes)), bounds=(-2, 5), method="bounded"
    )
    return float(np.exp(found.x))


def _compare(
    run: Trained, heads: Sequence[tuple[Tensor, Tensor]], split: str, ids_N: np.ndarray
) -> tuple[list[Compared], float, float]:
    """Measure both heads on the same samples, for `Refit`."""
    pairs: list[list[np.ndarray]] = [[] for _ in run.tasks]
    for z, targets in run.represented(split, ids_N):
        with torch.no_grad():
            outputs = run.network.heads(z, None)
        vectors_BD = torch.from_numpy(as_vectors(z)).float()
        before = list(outputs.unbind(dim=1)) if isinstance(outputs, Tensor) else outputs
        for pair, task, old, (weight_OD, bias_O) in zip(pairs, run.tasks, before, heads, strict=True):
            target_B = torch.from_numpy(targets[task.name])
            new = F.linear(vectors_BD, weight_OD, bias_O)
            pair.append(np.stack([_errors(task, old.cpu(), target_B), _errors(task, new, target_B)]))
    both_T2N = [np.concatenate(pair, axis=1) for pair in pairs]
    return list(_compared(run.tasks, both_T2N)), *_mean_change(both_T2N)


def _mean_change(both_T2N: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the mean relative change of the tasks' errors, and its standard error: tasks share their samples."""
    known = [both_2N for both_2N in both_T2N if np.nansum(both_2N[0]) > 0]
    if not known:
        return 0.0, 0.0
    changes_TN = np.array([(both_2N[1] - both_2N[0]) / np.nanmean(both_2N[0]) for both_2N in known])
    weights_T1 = 1 / (~np.isnan(changes_TN)).sum(axis=1, keepdims=True) / len(known)
    shares_N = np.nansum(weights_T1 * (changes_TN - np.nanmean(changes_TN, axis=1, keepdims=True)), axis=0)
    return float(np.nanmean(changes_TN, axis=1).mean()), float(np.sqrt((shares_N**2).sum()))


def _compared(tasks: Sequence[Task], both_T2N: Sequence[np.ndarray]) -> Iterator[Compared]:
    for task, all_2N in zip(tasks, both_T2N, strict=True):
        both_2N = task.scale * all_2N[:, ~np.isnan(all_2N[0])]
        count = both_2N.shape[1]
        if count:
            error = float((both_2N[1] - both_2N[0]).std(ddof=1) / count**0.5) if count > 1 else float("inf")
            before, after = both_2N.mean(axis=1).tolist()
            yield Compared(task.name, task.unit, count, before, after, error)


def _errors(task: Task, output_BO: Tensor, target_B: Tensor) -> np.ndarray:
    """Return each sample's error, NaN where it has no label."""
    if isinstance(task, Classification):
        wrong_B: np.ndarray = (output_BO.argmax(dim=1) != target_B).double().where(target_B >= 0, torch.nan).numpy()
        return wrong_B
    residual_B: np.ndarray = (output_BO.squeeze(1) - target_B).double().abs().numpy()
    return residual_B


def _write(run: Trained, experiment: Experiment, heads: Sequence[tuple[Tensor, Tensor]], refit: Refit) -> None:
    """Write the new run's folder: its configuration, one checkpoint and what was measured."""
    out, state = experiment.run_dir, read_state(run.snapshot)
    network = build_network(experiment, run.data.manifest, run.tasks)
    network.encoder.load_state_dict(run.network.encoder.state_dict())
    _fill_heads(network, heads)
    with claimed(experiment, None, run.runtime):
        saver = Saver(
            out / CHECKPOINTS, 1, run.runtime, run=secrets.token_hex(16), config=experiment.model_dump(mode="json")
        )
        saver.begin(
            state.step,
            [piece_of(name, tensor, 0, 1) for name, tensor in network.state_dict().items()],
            [],
            state.to_dict(),
        )
        saver.finish()
        replace(out / REFIT, f"{json.dumps(asdict(refit), indent=1)}\n".encode())


def _with_linear_heads(experiment: Experiment, out: Path) -> Experiment:
    model = experiment.model.model_copy(update={"head": HeadConfig(name="linear"), "tower": None})
    changed = experiment.model_copy(update={"name": out.name, "output": out.parent, "model": model})
    return parse_config(changed.model_dump(mode="json"), f"--out {out}")


def _fill_heads(network: MultiTaskModel, heads: Sequence[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        if isinstance(network.heads, StackedHeads):
            network.heads.first.weight_TCD.copy_(torch.stack([weight_OD for weight_OD, _ in heads]))
            network.heads.first.bias_TC.copy_(torch.stack([bias_O for _, bias_O in heads]))
            return
        for head, (weight_OD, bias_O) in zip(network.heads.children(), heads, strict=True):
            (linear,) = (module for module in head.modules() if isinstance(module, nn.Linear))
            linear.weight.copy_(weight_OD)
            linear.bias.copy_(bias_O)


def _print(run_dir: Path, out: Path, refit: Refit) -> None:
    table = Table(title=f"{run_dir}: heads fitted anew, {refit.chosen}; errors on {refit.validated_on}")
    for column in ("task", "trained heads", "refitted", "change"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for task in refit.tasks:
        change = f"{task.after - task.before:+.3g} ± {task.error:.2g}"
        table.add_row(task.task, with_unit(task.before, task.unit), with_unit(task.after, task.unit), change)
    terminal = Terminal()
    terminal.print(table)
    lines = [f"cross-validated error / variance: {name} {error:.4g}" for name, error in refit.candidates.items()]
    lines.append(f"mean change of the errors: {refit.mean_change:+.1%} ± {refit.mean_change_error:.1%}")
    if refit.worse:
        lines.append(
            f"WORSE by more than two standard errors: {', '.join(refit.worse)}. The trained heads stand in {run_dir}"
        )
    Terminal(soft_wrap=True).print("\n".join([*lines, f"run: {out}"]))
