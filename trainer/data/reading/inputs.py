"""Group sources whose inputs are alike: their samples go through the encoder as one batch.

Shapes: S sources, C channels or columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data.format.specs import ImageSpec, InputSpec
from trainer.data.remote.folder import DataFolder
from trainer.errors import UserError


@dataclass(frozen=True)
class SharedInput:
    """The input of one source, or of several whose inputs are alike.

    Attributes:
        spec: what their samples decode to. Its means and standard deviations are those of these sources together, each
            weighted by the number of its train samples.
        sources: their names.
    """

    spec: InputSpec
    sources: tuple[str, ...]

    @property
    def words(self) -> str:
        """What this is and whose, such as `images of 28 x 28 x 1 (letters, digits)`."""
        return f"{form(self.spec)} ({', '.join(self.sources)})"


def by_input(sources: Sequence[DataFolder]) -> list[list[DataFolder]]:
    """Group sources whose inputs are alike: images of one size, or rows of the same columns.

    Raises:
        UserError: rows of as many numbers have other columns, which no encoder could tell apart.
    """
    groups: dict[tuple[int, ...], list[DataFolder]] = {}
    for source in sources:
        group = groups.setdefault(source.manifest.input.shape, [])
        group.append(source)
        _refuse_other_columns(group[0], source)
    return list(groups.values())


def shared_inputs(sources: Sequence[DataFolder]) -> tuple[SharedInput, ...]:
    """Return the inputs of some sources, in the order of `by_input`.

    Raises:
        UserError: as `by_input`.
    """
    return tuple(SharedInput(_pooled_input(group), tuple(each.name for each in group)) for group in by_input(sources))


def form(spec: InputSpec) -> str:
    """Return what a sample is, such as `images of 28 x 28 x 1`."""
    shape = " x ".join(map(str, spec.shape))
    return f"images of {shape}" if isinstance(spec, ImageSpec) else f"rows of {shape} features"


def pooled(
    means: Sequence[Sequence[float]], stds: Sequence[Sequence[float]], sources: Sequence[DataFolder]
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of all train samples, (C,) each, from those of each source."""
    weights_S = np.array([source.manifest.num_samples("train") for source in sources], np.float64)
    mean_SC, std_SC, fraction_S1 = np.array(means), np.array(stds), (weights_S / weights_S.sum())[:, None]
    mean_C = (fraction_S1 * mean_SC).sum(0)
    variance_C = (fraction_S1 * (std_SC**2 + (mean_SC - mean_C) ** 2)).sum(0)
    return mean_C, np.sqrt(variance_C)


def _pooled_input(sources: Sequence[DataFolder]) -> InputSpec:
    first, *others = (source.manifest.input for source in sources)
    if not others:
        return first
    inputs = [first, *others]
    mean_C, std_C = pooled([spec.mean for spec in inputs], [spec.std for spec in inputs], sources)
    return first.model_copy(update={"mean": tuple(mean_C.tolist()), "std": tuple(std_C.tolist())})


def _refuse_other_columns(first: DataFolder, source: DataFolder) -> None:
    ours, theirs = first.manifest.input, source.manifest.input
    if isinstance(ours, ImageSpec) or isinstance(theirs, ImageSpec):
        return
    for number, (our, their) in enumerate(zip(ours.names, theirs.names, strict=True), 1):
        if our != their:
            raise UserError(
                f"data.sources: the samples of {first.name!r} and of {source.name!r} are {form(ours)}, but column "
                f"{number} of {source.name!r} is {their!r}, not {our!r}. Expected the same columns in the same order, "
                "as the encoder cannot tell them apart: convert one of the sources again"
            )
