"""Find and call a class or function of the user's own: the one importer of dotted paths.

A dotted path in a configuration runs code, as the user asked. What is found is held against what is expected before it
is called, so that a slip, or a path to one of Python's own functions, runs nothing.
"""

import importlib
import inspect
import sys
import traceback
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OURS = ("models", "trainer")


def find(path: str, kind: type, *, named: str, expected: str) -> Callable[..., Any]:
    """Import what `path` leads to. The current folder counts.

    Args:
        path: `module.name` or `package.module.name`.
        kind: a class must be a subclass of it, and a function that declares what it returns must declare such a class.
        named: begins the sentence of an error, such as "encoder 'my.module.Encoder'".
        expected: ends the sentence of an error, such as "expected a torch.nn.Module".

    Raises:
        ValueError: there is no such thing, its module cannot be imported, or it is of another kind.
    """
    module, _, name = path.rpartition(".")
    _refuse_pythons_own(module, named, expected)
    with _told_as(f"{named} cannot be imported"), _current_folder_first():
        found = getattr(importlib.import_module(module), name)
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        raise ValueError(f"{named} is no function and no class, but {type(found).__name__}; {expected}")
    _refuse_pythons_own(found.__module__, named, expected)
    returned = found if inspect.isclass(found) else _declared(found)
    if returned is not None and not issubclass(returned, kind):
        what = "is the class" if returned is found else "returns"
        raise ValueError(f"{named} {what} {returned.__name__}; {expected}")
    return found


def call(build: Callable[..., Any], *arguments: Any, doing: str, **keywords: Any) -> Any:
    """Call what may be the user's own code.

    Args:
        build: the class or function.
        arguments: its positional arguments.
        doing: begins the sentence of an error, such as "encoder 'lenet' cannot be built with dropout=7".
        keywords: its keyword arguments.

    Raises:
        ValueError: it raised something or called sys.exit; says what, and in which line of the user's.
    """
    with _told_as(doing):
        return build(*arguments, **keywords)


def _refuse_pythons_own(module: str, named: str, expected: str) -> None:
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise ValueError(f"{named} is of Python's own module {module}; {expected}")


@contextmanager
def _current_folder_first() -> Iterator[None]:
    """`python -m` puts it there, the installed command does not."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _declared(function: Callable[..., Any]) -> type | None:
    """The class that a function declares to return; None where it declares none, or none that can be looked up."""
    try:
        returned = typing.get_type_hints(function).get("return")
    except Exception:  # names that exist for type checkers alone
        return None
    return returned if inspect.isclass(returned) else None


@contextmanager
def _told_as(doing: str) -> Iterator[None]:
    try:
        yield
    except (Exception, SystemExit) as error:
        if hasattr(error, "exit_code"):
            raise  # It knows how the command ends on it, such as on a signal.
        plain = isinstance(error, ImportError | AttributeError | TypeError | ValueError | RuntimeError)
        name = "" if plain else f"{type(error).__name__}: "
        raise ValueError(f"{doing}: {name}{error}{_place(error)}") from error


def _place(error: BaseException) -> str:
    """The last line of the user's own code that was reached: ` (/home/me/mine.py:12)`."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}:{error.lineno})"
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        file = frame.f_code.co_filename
        if package not in OURS and package not in sys.stdlib_module_names and "site-packages" not in file:
            place = f" ({file}:{line})"
    return place
