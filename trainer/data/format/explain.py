"""Turn the faults that pydantic finds into messages for users."""

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from trainer.data.format.specs import MAX_NAME
from trainer.errors import UserError
from trainer.plain import one_line


@contextmanager
def refusing(where: str) -> Iterator[None]:
    """Turn a ValidationError raised inside into a UserError that begins with `where`."""
    try:
        yield
    except ValidationError as error:
        raise UserError(f"{where}:\n{explain(error)}") from None


def explain(error: ValidationError) -> str:
    """Return the first faults of a validation, one per line."""
    faults = error.errors()
    # For a list with one wrong item, pydantic also reports that it is too short.
    causes = [one for one in faults if not any(_inside(other["loc"], one["loc"]) for other in faults)]
    lines = [f"  {_location(fault['loc'])}: {one_line(fault['msg'])}" for fault in causes]
    return "\n".join(lines[:5]) + (f"\n  ... and {len(lines) - 5} more" if len(lines) > 5 else "")


def _location(loc: tuple[int | str, ...]) -> str:
    return ".".join(one_line(str(part))[:MAX_NAME] for part in loc) or "the whole"


def _inside(loc: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    return len(loc) > len(outer) and loc[: len(outer)] == outer
