"""`paretrain couple`: predict what combining the tasks of a table, or the heads of a run, wins.

Shapes: N samples, P features, C columns of labels, which are the theory's tasks.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paretrain.theory.coupling import Advice, MeanErrors, advice_sentence, couple, learning_curve
from paretrain.theory.coupling.couple import MIN_LABELS
from trainer.commands.couple_page import couple_page
from trainer.commands.representation import (
    as_vectors,
    label_columns,
    label_values,
    read_samples,
    represented,
    some_samples,
)
from trainer.commands.trained import open_trained
from trainer.config.sections.data import DataConfig
from trainer.config.sections.parallel import ParallelConfig
from trainer.data.format.manifest import MANIFEST_NAME
from trainer.data.format.specs import FeaturesSpec
from trainer.data.reading.images import to_input
from trainer.errors import UserError
from trainer.files import make_folder, refuse_unwritable, replace
from trainer.observe.report.frame import refuse_no_page
from trainer.run_path import CONFIG
from trainer.runtime.distributed import joined
from trainer.terminal import Terminal
from trainer.training.prepare_data import open_split
from trainer.training.restore import read_state

SEED = 0
CURVE = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Times the labels that there are."""

DESIGNS = {
    "own rows": "each task has labels on its own rows: the theory of independent rows was used (equation 5)",
    "shared rows": "the tasks share their rows: the theory of shared rows was used, in which their noise may be "
    "correlated (equation 13)",
    "some rows shared": "the tasks share some of their rows: the theory of independent rows was used, as an "
    "approximation (equation 5); the estimates account for the noise of common rows",
}


@dataclass(frozen=True)
class Table:
    """Features (N x P) and labels (N x C) of the samples that were read, and how many times as many there are."""

    source: str
    features_NP: np.ndarray
    labels_NC: np.ndarray
    columns: Sequence[str]
    left_out: Sequence[str]
    factor: float


@dataclass(frozen=True)
class Coupling:
    """The findings; `curve` has the predicted mean errors with CURVE times the labels."""

    table: Table
    advice: Advice
    curve: Sequence[MeanErrors]

    @property
    def sentences(self) -> list[str]:
        """The advice, and which theory it stands on."""
        return [advice_sentence(self.advice), DESIGNS[self.advice.design]]


def couple_tasks(
    folder: Path, out: Path | None, samples: int, tasks: Sequence[str] | None, step: int | None
) -> Coupling:
    """Estimate how alike the tasks are and what combining them wins; print it, and write a page and its numbers.

    Args:
        folder: a data folder whose samples are rows of features, or a run's folder, whose encoder is kept as it is.
        out: NAME.html; the numbers become NAME.json. None: couple.html, in the folder of a run.
        samples: estimate from at most so many random samples of the train split.
        tasks: None: all.
        step: of a run's checkpoint; None: the last one.

    Raises:
        UserError: the folder is neither, a step of a data folder is asked for, fewer than two tasks have enough labels,
            no feature varies, or the page cannot be written.
    """
    is_run = (folder / CONFIG).exists()
    out = out or (folder if is_run else Path()) / "couple.html"
    refuse_no_page(out)
    if step is not None and not is_run:
        raise UserError(f"--step {step} is that of a run's checkpoint, and {folder} is no run's folder: leave it out")
    refuse_unwritable(out)
    table = _of_run(folder, samples, tasks, step) if is_run else _of_data(folder, samples, tasks)
    try:
        advice = couple(table.features_NP, table.labels_NC, factor=table.factor, seed=SEED)
        curve = learning_curve(table.features_NP, table.labels_NC, [table.factor * times for times in CURVE])
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from error
    found = Coupling(table, advice, curve)
    make_folder(out.parent)
    replace(
        out, couple_page(table.source, table.columns, table.left_out, advice, CURVE, curve, found.sentences).encode()
    )
    replace(out.with_suffix(".json"), f"{json.dumps(_plain(found), indent=1)}\n".encode())
    Terminal(soft_wrap=True).print("\n".join([*found.sentences, f"page: {out}"]))
    return found


def _of_data(folder: Path, samples: int, tasks: Sequence[str] | None) -> Table:
    if not (folder / MANIFEST_NAME).exists():
        raise UserError(f"{folder} is neither a run's folder ({CONFIG}) nor a data folder ({MANIFEST_NAME})")
    with joined(ParallelConfig(device="cpu")) as runtime:
        data = open_split(DataConfig(path=str(folder)), "train", runtime)
    manifest = data.sources[0].manifest
    if not isinstance(manifest.input, FeaturesSpec):
        raise UserError(
            f"{folder} holds images; expected rows of features. Train a run on them, and type: paretrain couple RUN"
        )
    specs = manifest.tasks if tasks is None else manifest.select_tasks(tasks)
    columns = label_columns(specs)
    ids_N = some_samples(manifest, "train", samples, SEED)
    batches = [
        (to_input(torch.from_numpy(inputs), manifest.input, "cpu").numpy().astype(float), label_values(specs, targets))
        for inputs, targets in read_samples(data, "train", [spec.name for spec in specs], ids_N)
    ]
    return _table(f"the rows of {folder}", columns, batches, manifest.num_samples("train"))


def _of_run(folder: Path, samples: int, tasks: Sequence[str] | None, step: int | None) -> Table:
    with open_trained(folder, "train", step, tasks) as run:
        columns = label_columns(run.specs)
        manifest = run.data.only.manifest
        ids_N = some_samples(manifest, "train", samples, SEED)
        batches = [(as_vectors(z), label_values(run.specs, targets)) for z, targets in represented(run, "train", ids_N)]
        source = f"the representation of {folder}, step {read_state(run.snapshot).step}"
        return _table(source, columns, batches, manifest.num_samples("train"))


def _table(source: str, columns: Sequence[str], batches: Sequence[tuple[np.ndarray, np.ndarray]], count: int) -> Table:
    features_NP, labels_NC = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    if not np.isfinite(features_NP).all():
        raise UserError(f"{source} is not finite for some samples")
    varied_P = features_NP.std(axis=0) > 0  # a unit that is off, or a constant column, tells nothing
    if not varied_P.any():
        raise UserError(f"{source}: no feature has two values among {len(features_NP)} samples, so there is no signal")
    if len(columns) < 2:
        raise UserError(f"{source}: there is one task, {', '.join(columns)}; expected at least two to combine")
    usable_C = [
        (~np.isnan(labels_C)).sum() >= MIN_LABELS and np.nanmin(labels_C) < np.nanmax(labels_C)
        for labels_C in labels_NC.T
    ]
    kept = [name for name, usable in zip(columns, usable_C, strict=True) if usable]
    if len(kept) < 2:
        raise UserError(
            f"{source}: {len(kept)} of {len(columns)} tasks have {MIN_LABELS} labels and two values among "
            f"{len(features_NP)} samples; expected at least two. Type a larger --samples"
        )
    return Table(
        source,
        features_NP[:, varied_P],
        labels_NC[:, usable_C],
        kept,
        [name for name in columns if name not in kept],
        count / len(features_NP),
    )


def _plain(found: Coupling) -> Any:
    table = found.table
    return _without_nan(
        {
            "source": table.source,
            "sentence": found.sentences[0],
            "samples": len(table.features_NP),
            "predicted_for_samples": round(len(table.features_NP) * table.factor),
            "features": table.features_NP.shape[1],
            "tasks": list(table.columns),
            "left_out": list(table.left_out),
            **asdict(found.advice),
            "learning_curve": [
                {"times": times, **asdict(errors)} for times, errors in zip(CURVE, found.curve, strict=True)
            ],
        }
    )


def _without_nan(value: Any) -> Any:
    """Return plain values for JSON, which has no NaN and no infinity."""
    if isinstance(value, np.ndarray):
        return _without_nan(value.tolist())
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
