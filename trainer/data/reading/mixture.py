"""What the samples of several sources contain together: an input, and the tasks of all of them."""

from collections.abc import Sequence
from typing import Any

from trainer.data.format.specs import (
    ClassificationSpec,
    DataSpec,
    DenseRegressionSpec,
    DenseTaskSpec,
    RegressionSpec,
    SegmentationSpec,
    TaskSpec,
)
from trainer.data.reading.inputs import SharedInput, pooled, shared_inputs
from trainer.data.remote.folder import DataFolder
from trainer.errors import UserError


def merged(sources: Sequence[DataFolder]) -> DataSpec:
    """Return what the samples of all sources contain: of one source its own manifest.

    The input is the first of `shared_inputs`, for which the encoder is built. Tasks of one name are one task. The means
    and standard deviations by which numbers are standardised are those of the sources together, each weighted by the
    number of its train samples.

    Raises:
        UserError: tasks of one name differ, rows have other columns, or inputs of several shapes have targets for every
            pixel.
    """
    if len(sources) == 1:
        return sources[0].manifest
    inputs, tasks = shared_inputs(sources), _merged_tasks(sources)
    _refuse_targets_of_pixels(tasks, inputs)
    return DataSpec(
        name=f"{len(sources)} sources",
        made_by={source.name: source.manifest.made_by for source in sources},
        input=inputs[0].spec,
        tasks=tasks,
    )


def _refuse_targets_of_pixels(tasks: Sequence[TaskSpec], inputs: Sequence[SharedInput]) -> None:
    dense = [task.name for task in tasks if isinstance(task, DenseTaskSpec)]
    if dense and len(inputs) > 1:
        raise UserError(
            f"data.sources: task {dense[0]!r} has a target for every pixel, and there are "
            f"{' and '.join(each.words for each in inputs)}. Expected images of one size, as the targets of a step are "
            "one tensor: convert the sources again with one --size, or leave the task out, by the names of the others "
            "in data.sources.NAME.tasks=[...]"
        )


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
    mean_C, std_C = pooled([(spec.mean,) for spec in scaled], [(spec.std,) for spec in scaled], sources)
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
