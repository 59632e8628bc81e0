"""`paretrain refit`: keep a run's encoder as it was trained, and fit its heads anew, linear, where that is better."""

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from trainer.commands.refit_fit import Head, fit_heads
from trainer.commands.refit_judge import STANDARD_ERRORS, TRAINED, Verdict, judge
from trainer.commands.representation import label_columns
from trainer.commands.trained import Trained, open_trained
from trainer.config.file import parse_config
from trainer.config.schema import Experiment
from trainer.config.sections.model import HeadConfig, ModelConfig
from trainer.errors import UserError
from trainer.files import refuse_unwritable, replace
from trainer.observe.units import with_unit
from trainer.run_folder import claimed
from trainer.runtime.checkpoints.folder import CHECKPOINTS
from trainer.runtime.checkpoints.pieces import piece_of
from trainer.runtime.checkpoints.saving import Saver
from trainer.terminal import Terminal
from trainer.training.network.build import build_network
from trainer.training.restore import read_state

REFIT = "refit.json"
VALIDATION = ("validation", "valid", "val")
"""Names of a split to compare on; without one, a part of the train split is held out."""
HELD_OUT = 0.2
SEED = 0


@dataclass(frozen=True)
class Refit:
    """Which head each task has got, and why.

    `validated` holds each least-squares fit's mean cross-validated error over the labels' variance; `compared_on` says
    which samples the tasks' heads were compared on.
    """

    tasks: Sequence[Verdict]
    validated: Mapping[str, float]
    compared_on: str

    @property
    def new(self) -> list[str]:
        """The tasks with a new head."""
        return [task.task for task in self.tasks if task.head != TRAINED]


def refit_run(run_dir: Path, out: Path, step: int | None, processes: int = 1) -> Refit:
    """Fit the heads of the checkpoint of `step` (None: the last one) anew, print what it wins, and write a new run.

    A task keeps its trained head unless a fitted one is better on samples that it was not fitted to. The new run's
    folder has one checkpoint, of the same step, without a state of the optimizer; `eval` and `export` take it. What was
    measured stands in refit.json. Collective.

    Args:
        run_dir: a run's folder.
        out: the new one's, which must not exist.
        step: of the checkpoint.
        processes: that read the samples, each its part.

    Raises:
        UserError: no such run or checkpoint, a task with targets for every pixel or with one label value only, or a
            folder that is there already or cannot be written.
    """
    with open_trained(run_dir, None, step, processes=processes) as run:
        run.runtime.on_main(lambda: _refuse_taken(out))
        label_columns(run.specs)  # Refuses tasks with targets for every pixel, before anything is read.
        fit_N, split, compare_N = _divide(run)
        fits = fit_heads(run, fit_N)
        verdicts = judge(run, fits.heads, split, compare_N)
        held_out = f"{len(compare_N)} samples of the train split, held out of the refit alone"
        refit = Refit(verdicts, fits.validated, held_out if split == "train" else f"the split {split}")
        heads = {
            task: fitted[verdict.head]
            for task, (fitted, verdict) in enumerate(zip(fits.heads, verdicts, strict=True))
            if verdict.head != TRAINED
        }
        _write(run, _with_heads(run.experiment, refit, out), heads, refit)
        if run.runtime.is_main:
            _print(run_dir, out, refit)
    return refit


def _refuse_taken(out: Path) -> None:
    if os.path.lexists(out):
        raise UserError(f"{out} is there already. Type another --out, or remove it first: rm -r {out}")
    refuse_unwritable(out)


def _divide(run: Trained) -> tuple[np.ndarray, str, np.ndarray]:
    """Return the train samples to fit, the split to compare on, and its samples."""
    manifest = run.data.only.manifest
    ids_N = np.arange(manifest.num_samples("train"))
    split = next((name for name in VALIDATION if name in manifest.splits), None)
    if split is not None:
        return ids_N, split, np.arange(manifest.num_samples(split))
    held_out_N = np.random.default_rng(SEED).random(len(ids_N)) < HELD_OUT
    return ids_N[~held_out_N], "train", ids_N[held_out_N]


def _with_heads(experiment: Experiment, refit: Refit, out: Path) -> Experiment:
    """Return the new run's configuration: the old one where no head is new."""
    model = experiment.model
    if refit.new:
        linear = [task.task for task in refit.tasks if task.task in {*refit.new, *model.linear_heads}]
        model = _all_linear(model) if len(linear) == len(refit.tasks) else _some_linear(model, linear)
    changed = experiment.model_copy(update={"name": out.name, "output": out.parent, "model": model})
    return parse_config(changed.model_dump(mode="json"), f"--out {out}")


def _all_linear(model: ModelConfig) -> ModelConfig:
    return model.model_copy(update={"head": HeadConfig(name="linear"), "linear_heads": [], "tower": None})


def _some_linear(model: ModelConfig, linear: Sequence[str]) -> ModelConfig:
    if model.head.name in ("linear", "shared"):  # Those that are kept are linear too.
        return _all_linear(model)
    return model.model_copy(update={"linear_heads": linear, "tower": None})


def _write(run: Trained, experiment: Experiment, heads: Mapping[int, Head], refit: Refit) -> None:
    """Write the new run's folder: its configuration, one checkpoint and what was measured. Collective."""
    state, runtime = read_state(run.snapshot), run.runtime
    network = run.network
    if heads:
        network = build_network(experiment, run.data.spec, run.tasks)
        network.encoder.load_state_dict(run.network.encoder.state_dict())
        with torch.no_grad():
            for task in range(len(run.tasks)):
                found = heads[task] if task in heads else run.network.head_state(task).values()
                for tensor, value in zip(network.head_state(task).values(), found, strict=True):
                    tensor.copy_(value)
    with claimed(experiment, None, runtime):
        saver = Saver(
            experiment.run_dir / CHECKPOINTS,
            1,
            runtime,
            run=runtime.gather(secrets.token_hex(16))[0],
            config=experiment.model_dump(mode="json"),
        )
        tensors = network.state_dict().items()
        pieces = [piece_of(name, tensor, runtime.rank, runtime.world_size) for name, tensor in tensors]
        saver.begin(state.step, pieces, [], state.to_dict())
        saver.finish()
        record = f"{json.dumps(asdict(refit), indent=1)}\n".encode()
        runtime.on_main(lambda: replace(experiment.run_dir / REFIT, record))


def _print(run_dir: Path, out: Path, refit: Refit) -> None:
    table = Table(title=f"{run_dir}: heads fitted anew; errors and losses on {refit.compared_on}")
    for column in ("task", "trained", "change of the error", "change of the loss", "head"):
        table.add_column(column, justify="left" if column in ("task", "head") else "right")
    for task in refit.tasks:
        before, error, loss = "no labels", "", ""
        if task.error and task.loss:
            before, error, loss = with_unit(task.error.before, task.unit), str(task.error), str(task.loss)
        table.add_row(task.task, before, error, loss, task.head)
    Terminal().print(table)
    kept = [task.task for task in refit.tasks if task.head == TRAINED]
    lines = [f"cross-validated error / variance: {name} {error:.4g}" for name, error in refit.validated.items()]
    lines.append(f"{len(refit.new)} of {len(refit.tasks)} tasks have a new head")
    if kept:
        lines.append(
            f"as trained: {', '.join(kept)}. No fitted head has a loss that is smaller by {STANDARD_ERRORS} standard "
            "errors, and an error that is not larger"
        )
    Terminal(soft_wrap=True).print("\n".join([*lines, f"run: {out}"]))
