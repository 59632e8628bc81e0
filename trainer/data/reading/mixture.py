"""What the samples of several sources contain together: one input, and the tasks of all of them.

Shapes: S sources, C channels or columns.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.data.format.specs import (
    ClassificationSpec,
    DataSpec,
    DenseRegressionSpec,
    DenseTaskSpec,
    ImageSpec,
    InputSpec,
    RegressionSpec,
    SegmentationSpec,
    TaskSpec,
)
from trainer.data.remote.folder import DataFolder
from trainer.errors import UserError


def merged(sources: Sequence[DataFolder]) -> DataSpec:
    """Return what the samples of all sources contain: of one source its own manifest.

    Tasks of one name are one task. Means and standard deviations, by which inputs and numbers are standardised, are
    those of the sources together, each weighted by the number of its train samples.

    Raises:
        UserError: the inputs differ in kind or shape, or tasks of one name differ.
    """
    if len(sources) == 1:
        return sources[0].manifest
    return DataSpec(
        name=f"{len(sources)} sources",
        made_by={source.name: source.manifest.made_by for source in sources},
        input=_merged_input(sources),
        tasks=_merged_tasks(sources),
    )


def _merged_input(sources: Sequence[DataFolder]) -> InputSpec:
    first, weights_S = sources[0].manifest.input, _sizes(sources)
    inputs = [source.manifest.input for source in sources]
    for source, spec in zip(sources, inputs, strict=True):
        if (spec.shape, _columns(spec)) != (first.shape, _columns(first)):
            differs = next(
                (
                    f"; its column {number} is {theirs!r}, not {ours!r}"
                    for number, (ours, theirs) in enumerate(zip(_columns(first), _columns(spec), strict=False), 1)
                    if ours != theirs
                ),
                "",
            )
            raise UserError(
                f"data.sources: the samples of {sources[0].name!r} are {_form(first)}, those of {source.name!r} are "
                f"{_form(spec)}{differs}. Expected inputs alike, as they go through the encoder as one batch: convert "
                "one of the sources again"
            )
    mean_C, std_C = _pooled([spec.mean for spec in inputs], [spec.std for spec in inputs], weights_S)
    return first.model_copy(update={"mean": tuple(mean_C.tolist()), "std": tuple(std_C.tolist())})


def _columns(spec: InputSpec) -> tuple[str, ...]:
    return () if isinstance(spec, ImageSpec) else spec.names


def _form(spec: InputSpec) -> str:
    shape = " x ".join(map(str, spec.shape))
    return f"images of {shape}" if isinstance(spec, ImageSpec) else f"rows of {shape} features"


def _merged_tasks(sources: Sequence[DataFolder]) -> tuple[TaskSpec, ...]:
    having: dict[str, list[DataFolder]] = {}
    for source in sources:
        for task in source.tasks:
            having.setdefault(task.name, []).append(source)
    return tuple(_merged_task(name, of_task) for name, of_task in having.items())


def _merged_task(name: str, sources: Sequence[DataFolder]) -> TaskSpec:
    specs = [source.manifest.select_tasks([name])[0] for source in sources]
    first = specs[0]
    for source, spec in zip(sources, specs, strict=True):
        if _meaning(spec) != _meaning(first):
            raise UserError(
                f"data.sources: task {name!r} is {_described(first)} in {sources[0].name!r}, and {_described(spec)} in "
                f"{source.name!r}; expected the same, as tasks of one name are one task. Name the tasks to use, "
                f"without {name!r}, in data.sources.{source.name}.tasks=[...], or convert one of the sources again"
            )
    scaled = [spec for spec in specs if isinstance(spec, RegressionSpec | DenseRegressionSpec)]
    if not scaled:
        return first
    mean_C, std_C = _pooled([(spec.mean,) for spec in scaled], [(spec.std,) for spec in scaled], _sizes(sources))
    return first.model_copy(update={"mean": float(mean_C[0]), "std": float(std_C[0])})


def _meaning(spec: TaskSpec) -> tuple[Any, ...]:
    """Return what two sources must agree on."""
    if isinstance(spec, ClassificationSpec | SegmentationSpec):
        return spec.kind, spec.classes
    return spec.kind, spec.unit, spec.channels if isinstance(spec, DenseRegressionSpec) else None


def _described(spec: TaskSpec) -> str:
    kind = spec.kind.replace("_", " ")
    if isinstance(spec, ClassificationSpec | SegmentationSpec):
        shown = ", ".join(spec.classes[:5])
        return f"a {kind} of {len(spec.classes)} classes ({shown}{', ...' if len(spec.classes) > 5 else ''})"
    channels = f" of {spec.channels} channels" if isinstance(spec, DenseTaskSpec) else ""
    return f"a {kind}{channels} in {spec.unit or 'no unit'}"


def _sizes(sources: Sequence[DataFolder]) -> np.ndarray:
    return np.array([source.manifest.num_samples("train") for source in sources], np.float64)


def _pooled(
    means: Sequence[Sequence[float]], stds: Sequence[Sequence[float]], weights_S: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of all samples, (C,) each, from those of each source and its weight."""
    mean_SC, std_SC, fraction_S1 = np.array(means), np.array(stds), (weights_S / weights_S.sum())[:, None]
    mean_C = (fraction_S1 * mean_SC).sum(0)
    variance_C = (fraction_S1 * (std_SC**2 + (mean_SC - mean_C) ** 2)).sum(0)
    return mean_C, np.sqrt(variance_C)
