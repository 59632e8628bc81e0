"""How many samples of each source a step has.

Shapes: none; lists are in the order of the sources.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

from trainer.config.sections.data import DataConfig
from trainer.data.reading.order import check_global_batch
from trainer.data.remote.folder import DataFolder
from trainer.errors import UserError


def samples_per_step(
    config: DataConfig, sources: Sequence[DataFolder], global_batch: int, world_size: int
) -> list[int]:
    """Divide a global batch among the sources, by data.sources.NAME.share or data.temperature.

    The numbers do not depend on the ranks, which must divide each of them.

    Raises:
        UserError: a source gets no sample, or more than its train split has; or the ranks cannot share its samples.
    """
    sizes = [source.manifest.num_samples("train") for source in sources]
    if not config.sources:
        check_global_batch(sizes[0], global_batch=global_batch, world_size=world_size)
        return [global_batch]
    if global_batch % config.multiple_of:
        nearest = -(-global_batch // config.multiple_of) * config.multiple_of
        raise UserError(
            f"train.global_batch={global_batch} is no multiple of data.multiple_of={config.multiple_of}: type "
            f"train.global_batch={nearest}"
        )
    if config.temperature is None:
        weights = [config.sources[source.name].share for source in sources]
    else:
        weights = [size**config.temperature for size in sizes]
    counts = divided(weights, global_batch, config.multiple_of)
    for source, size, count in zip(sources, sizes, counts, strict=True):
        _check(source.name, size, count, global_batch, world_size, config)
    return counts


def divided(weights: Sequence[float], total: int, unit: int) -> list[int]:
    """Divide `total` in proportion to positive weights, by the method of largest remainders (Hamilton's).

    Of equal remainders the first one counts as larger.

    Args:
        weights: of the parts.
        total: to divide, a multiple of `unit`.
        unit: what every part is a multiple of.
    """
    whole = sum(map(Fraction, weights))
    exact = [Fraction(weight) * (total // unit) / whole for weight in weights]
    parts = [int(share) for share in exact]
    by_remainder = sorted(range(len(parts)), key=lambda number: parts[number] - exact[number])
    for number in by_remainder[: total // unit - sum(parts)]:
        parts[number] += 1
    return [part * unit for part in parts]


def _check(name: str, size: int, count: int, global_batch: int, world_size: int, config: DataConfig) -> None:
    knob = f"data.sources.{name}.share" if config.temperature is None else "data.temperature"
    if not count:
        raise UserError(
            f"data.sources: source {name!r} gets none of the {global_batch} samples of a step. Type a larger "
            f"train.global_batch, or another {knob}"
        )
    if count > size:
        raise UserError(
            f"data.sources: a step has {count} samples of source {name!r}, whose train split has {size}. Type a "
            f"smaller train.global_batch, or another {knob}"
        )
    if count % world_size:
        unit = math.lcm(config.multiple_of, world_size)
        raise UserError(
            f"data.sources: a step has {count} samples of source {name!r}, which {world_size} processes cannot share "
            f"equally. Type data.multiple_of={unit}, or a number of processes that divides {count}"
        )
