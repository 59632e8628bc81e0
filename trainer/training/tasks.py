"""Build the tasks of a run from the descriptions of the data and the section `tasks` of the configuration."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from models import Classification, DenseRegression, Regression, Segmentation, Task
from models.losses import ABSOLUTE, CROSS_ENTROPY, ClassLoss, NumberLoss
from models.tasks import SPREAD
from trainer.config.metrics import DECIDING, METRICS, metrics_of
from trainer.config.sections.tasks import TaskConfig
from trainer.data.format.specs import ClassificationSpec, DataSpec, RegressionSpec, SegmentationSpec, TaskSpec
from trainer.data.reading.class_counts import class_counts
from trainer.data.remote.folder import DataFolder
from trainer.errors import UserError, did_you_mean
from trainer.user_code import call, is_user_code, load

Sections = Mapping[str, TaskConfig]
"""By the name of a task, by a pattern, or by a kind."""
KINDS: Mapping[str, type] = {
    "classification": Classification,
    "regression": Regression,
    "segmentation": Segmentation,
    "dense_regression": DenseRegression,
}
OF_CLASSES = ("cross_entropy", "focal")


def build_tasks(
    data: DataSpec, names: Sequence[str] | None, sections: Sections, sources: Sequence[DataFolder] = ()
) -> list[Task]:
    """Build the tasks `names` of the data, or all of them.

    Args:
        data: what the samples contain.
        names: of the tasks; None: all.
        sections: of the configuration.
        sources: of the data, whose train labels `class_weights: balanced` counts.

    Raises:
        UserError: the data has no such task, a section does not fit its task, or is of none.
    """
    for key in sections:
        if not any(_matches(key, spec) for spec in data.tasks):
            known = [spec.name for spec in data.tasks]
            raise UserError(f"tasks.{key}: the data have no such task, nor one that matches{did_you_mean(key, known)}")
    specs = data.tasks if names is None else data.select_tasks(names)
    return [_build_task(spec, section_of(spec.name, spec.kind, sections), sources) for spec in specs]


def metric_names(tasks: Sequence[Task], sections: Sections) -> dict[str, list[str]]:
    """Return the names of each task's metrics, the one that decides included.

    Raises:
        UserError: a section names none that fits its task.
    """
    found = {}
    for task in tasks:
        section, fits = section_of(task.name, task.kind, sections), _fitting(task)
        chosen = [*(section.metrics or metrics_of(task.kind, task.num_outputs)), _deciding(task, section)]
        found[task.name] = [name for name in fits if name in chosen]
        if section.metrics and not any(name in fits for name in section.metrics):
            raise UserError(f"tasks: none of the metrics {', '.join(section.metrics)} is of {_described(task, fits)}")
        if section.decides and section.decides not in fits:
            raise UserError(f"tasks: the metric that decides, {section.decides}, is none of {_described(task, fits)}")
    return found


def deciding_metrics(tasks: Sequence[Task], sections: Sections) -> dict[str, str]:
    """Return the name of the metric by which each task is compared."""
    return {task.name: _deciding(task, section_of(task.name, task.kind, sections)) for task in tasks}


def section_of(name: str, kind: str, sections: Sections) -> TaskConfig:
    """Return the section of a task: of its name, else of the first pattern that matches it, else of its kind."""
    patterns = [section for key, section in sections.items() if key not in KINDS and fnmatchcase(name, key)]
    return sections.get(name) or next(iter(patterns), None) or sections.get(kind) or TaskConfig()


def _matches(key: str, spec: TaskSpec) -> bool:
    return key in (spec.name, spec.kind) or fnmatchcase(spec.name, key)


def _deciding(task: Task, section: TaskConfig) -> str:
    return section.decides or DECIDING[task.kind]


def _fitting(task: Task) -> list[str]:
    """Return all metrics that a task can have."""
    two = task.num_outputs == 2
    return [name for name, metric in METRICS.items() if task.kind in metric.kinds and (two or not metric.only_two)]


def _described(task: Task, fits: Sequence[str]) -> str:
    classes = f" of {task.num_outputs} classes" if task.kind == "classification" else ""
    return f"task {task.name!r}, a {task.kind.replace('_', ' ')}{classes}. Its metrics: {', '.join(fits)}"


def _build_task(spec: TaskSpec, section: TaskConfig, sources: Sequence[DataFolder]) -> Task:
    if isinstance(spec, ClassificationSpec | SegmentationSpec):
        classes = spec.classes if isinstance(spec, SegmentationSpec) else len(spec.classes)
        if section.loss is not None and is_user_code(section.loss):
            return _own_task(spec, section, spec.name, classes)
        objective = _class_loss(spec, section, sources)
        if isinstance(spec, SegmentationSpec):
            return Segmentation(spec.name, spec.classes, objective)
        return Classification(spec.name, len(spec.classes), objective)
    # The network learns standardised values. Errors are shown in the task's unit; without one, in standard deviations.
    unit, scale = (spec.unit, spec.std) if spec.unit else (SPREAD, 1.0)
    channels = () if isinstance(spec, RegressionSpec) else (spec.channels,)
    if section.loss is not None and is_user_code(section.loss):
        return _own_task(spec, section, spec.name, *channels, unit, scale)
    number_loss = _number_loss(spec, section)
    if isinstance(spec, RegressionSpec):
        return Regression(spec.name, unit, scale, number_loss)
    return DenseRegression(spec.name, spec.channels, unit, scale, number_loss)


def _class_loss(
    spec: ClassificationSpec | SegmentationSpec, section: TaskConfig, sources: Sequence[DataFolder]
) -> ClassLoss:
    _refuse_unfit(spec, section, section.loss in (None, *OF_CLASSES), ("delta",), "cross_entropy or focal")
    weights = section.class_weights
    if isinstance(weights, dict):
        if unknown := [name for name in weights if name not in spec.classes]:
            hint = did_you_mean(unknown[0], spec.classes)
            raise UserError(f"tasks: class_weights of {spec.name!r}: no class {unknown[0]!r}{hint}")
        by_class = tuple(weights.get(name, 1.0) for name in spec.classes)
    elif weights == "balanced":
        if isinstance(spec, SegmentationSpec):
            raise UserError(
                f"tasks: class_weights: balanced counts one label a sample, and task {spec.name!r} has one a pixel. "
                "Type the weight of each class"
            )
        counts = class_counts(sources, spec.name)
        num_seen = sum(count > 0 for count in counts)
        by_class = tuple(sum(counts) / (num_seen * count) if count else 1.0 for count in counts)
    gamma = section.gamma if section.loss == "focal" else 0.0
    loss = ClassLoss(gamma, section.label_smoothing, by_class if weights is not None else None)
    return CROSS_ENTROPY if loss == CROSS_ENTROPY else loss


def _number_loss(spec: TaskSpec, section: TaskConfig) -> NumberLoss:
    fits = section.loss not in OF_CLASSES
    _refuse_unfit(spec, section, fits, ("class_weights", "label_smoothing"), "huber, l1 or l2")
    if section.loss == "l1" or (section.loss is None and not isinstance(spec, RegressionSpec)):
        return ABSOLUTE
    return NumberLoss("l2") if section.loss == "l2" else NumberLoss("huber", section.delta)


def _refuse_unfit(spec: TaskSpec, section: TaskConfig, fits: bool, others: Sequence[str], expected: str) -> None:
    kind = spec.kind.replace("_", " ")
    if not fits:
        raise UserError(f"tasks: loss={section.loss} is not for task {spec.name!r}, a {kind}: expected {expected}")
    for name in others:
        if getattr(section, name) != TaskConfig.model_fields[name].default:
            raise UserError(f"tasks: {name} is not for task {spec.name!r}, a {kind}")


def _own_task(spec: TaskSpec, section: TaskConfig, *arguments: object) -> Task:
    """Build the user's own task, with the arguments of ours of its kind.

    Raises:
        UserError: it cannot be imported or built, or is of another kind.
    """
    assert section.loss is not None
    kind, named = KINDS[spec.kind], f"loss '{section.loss}' of task {spec.name!r}"
    expected = f"expected a subclass of models.{kind.__name__}"
    try:
        build = load(section.loss, kind, named=named, expected=expected)
        task: Task = call(build, *arguments, doing=f"{named} cannot be built with {section.options}", **section.options)
    except ValueError as error:
        raise UserError(str(error)) from error
    if not isinstance(task, kind):
        raise UserError(f"{named} gave {type(task).__name__}; {expected}")
    return task
