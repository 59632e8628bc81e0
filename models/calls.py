"""Errors of code that a configuration names: one sentence in place of whatever it raises."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def errors_named(doing: str) -> Iterator[None]:
    """Turn any exception, and sys.exit, into a ValueError that begins with `doing`; its cause is the exception.

    Args:
        doing: such as "encoder 'lenet' cannot be built with dropout=7".
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if hasattr(error, "exit_code"):
            raise  # It decides how the command ends, as the error of a signal does.
        usual = isinstance(error, ImportError | AttributeError | TypeError | ValueError | RuntimeError)
        said = error.msg if isinstance(error, SyntaxError) else error  # Without the file, which is said beside it.
        raise ValueError(f"{doing}: {'' if usual else f'{type(error).__name__}: '}{said}") from error
