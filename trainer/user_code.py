"""Load the user's own code: an encoder, a head, a rule or a source, named in one of two ways.

    my_nets.tiny.Net        a dotted path: first what is installed, then the folder of the command
    my_nets/tiny.py:Net     a file: relative to the folder of the command, or absolute

A name in a configuration runs code, as the user asked. What it leads to is compared with what is expected before it is
called, so that a slip, or the name of one of Python's own functions, runs nothing.
"""

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
import typing
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from models.calls import errors_named
from models.encoders.timm_models import PREFIX as TIMM
from trainer.errors import did_you_mean
from trainer.files import sha256

OURS = ("paretrain", "trainer", "models", "launch")
"""The packages of this project."""
USER_CODE = "PARETRAIN_USER_CODE"
"""Environment variable: a copy of the user's code, see launch/frozen_code.py."""
EXAMPLE = "my_nets/tiny.py:Net"


def code_folder() -> Path:
    """Return the folder of the user's code: that of the command, or the copy of it that a submission has made."""
    return Path(os.environ.get(USER_CODE) or Path.cwd())


def is_user_code(name: str) -> bool:
    """Return whether `name` is a dotted path or a file, and not one of our short names."""
    return any(mark in name for mark in "./:") and not name.startswith(TIMM)


def load(name: str, kind: type, *, named: str, expected: str) -> Callable[..., Any]:
    """Import what `name` leads to.

    Args:
        name: a dotted path, or `FILE.py:NAME`.
        kind: a class must be a subclass of it, and a function that declares what it returns must declare such a class.
        named: begins the sentence of an error, such as "encoder 'my_nets.tiny.Net'".
        expected: ends the sentence of an error, such as "expected a torch.nn.Module".

    Raises:
        ValueError: there is no such thing, its module cannot be imported, or it is of another kind.
    """
    where, attribute = _split(name, named)
    if not isinstance(where, Path):
        _refuse_standard_library(where, named, expected)
    with errors_explained(f"{named} cannot be imported"):
        found = _attribute(_import(where), where, attribute)
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        raise ValueError(f"{named} is no function and no class, but {type(found).__name__}; {expected}")
    _refuse_standard_library(found.__module__, named, expected)
    returned = found if inspect.isclass(found) else _declared_return(found)
    if returned is not None and not issubclass(returned, kind):
        verb = "is the class" if returned is found else "returns"
        raise ValueError(f"{named} {verb} {returned.__name__}; {expected}")
    return found


def call(build: Callable[..., Any], *arguments: Any, doing: str, **keywords: Any) -> Any:
    """Call what may be the user's own code.

    Args:
        build: the class or function.
        arguments: its positional arguments.
        doing: begins the sentence of an error, such as "weighting 'dwa' cannot be built with temperature=0".
        keywords: its keyword arguments.

    Raises:
        ValueError: it raised an exception or called sys.exit; the message ends with the line of the user's code.
    """
    with errors_explained(doing):
        return build(*arguments, **keywords)


def refuse_unknown(options: Iterable[str], allowed: Collection[str], named: str) -> None:
    """Refuse options that a class or function does not take.

    Args:
        options: names of what is given.
        allowed: names of what it takes.
        named: begins the sentence of the error, as in `load`.

    Raises:
        ValueError: there is such an option.
    """
    for option in options:
        if option not in allowed:
            hint = did_you_mean(option, allowed)
            raise ValueError(f"{named} has no option '{option}'{hint} Its options: {', '.join(allowed) or 'none'}")


@contextmanager
def errors_explained(doing: str) -> Iterator[None]:
    """Turn any exception into a ValueError: what failed, the exception, and the line of the user's code."""
    try:
        with errors_named(doing):
            yield
    except ValueError as error:
        raise ValueError(placed(error)) from error.__cause__


def placed(error: BaseException) -> str:
    """Return an error's message with the last line of the user's own code that its cause has reached.

    It is at the end, as in ` (/home/me/mine.py:12)`, and only once: an error may be explained at several places.
    """
    place, message = _place_of(error), str(error)
    return message if message.endswith(place) else f"{message}{place}"


def _place_of(error: BaseException) -> str:
    cause = error.__cause__ or error
    if isinstance(cause, SyntaxError) and cause.filename:
        return f" ({cause.filename}:{cause.lineno})"
    place = ""
    for frame, line in traceback.walk_tb(cause.__traceback__):
        if _is_users(str(frame.f_globals.get("__name__")), frame.f_code.co_filename):
            place = f" ({frame.f_code.co_filename}:{line})"
    return place


def python_files(name: str) -> Iterator[tuple[str, Path]]:
    """Yield the Python files behind `name` without importing them, each with a label that is the same on every host.

    A dotted path stands for all files of its top-level module, a file for itself. What cannot be found yields nothing:
    `load` refuses it later, with a sentence.
    """
    if ":" in name:
        file = name.rpartition(":")[0]
        if (path := _path_of(file)).is_file():
            yield Path(file).as_posix(), path
        return
    _search_users_code()
    module = name.partition(".")[0]
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return
    if spec is None:
        return
    for folder in spec.submodule_search_locations or ():
        for path in sorted(Path(folder).rglob("*.py")):
            yield f"{module}/{path.relative_to(folder).as_posix()}", path
    if not spec.submodule_search_locations and spec.has_location and spec.origin:
        yield f"{module}.py", Path(spec.origin)


def imported(names: Iterable[str]) -> list[str]:
    """Import what names lead to. Returns those that could be imported; `load` refuses the others, with a sentence."""
    found = []
    for name in names:
        with suppress(Exception):
            _import(_split(name, name)[0])
            found.append(name)
    return found


def loaded_files(names: Iterable[str]) -> dict[str, str]:
    """Return the user's Python files that are in use, with their SHA-256.

    Args:
        names: what was loaded. Its own files count wherever they are; what they import counts from the folder of the
            command, and from the folder of a named file.
    """
    named, folders = set(), {code_folder(), Path.cwd()}
    for name in names:
        where, _ = _split(name, name)
        if isinstance(where, Path):
            folders.add(where.parent)
        named.add(_module_name(where))
    found = set()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or not Path(file).is_file():
            continue
        path = Path(file).absolute()
        if name in named or (_is_users(name, file) and any(path.is_relative_to(folder) for folder in folders)):
            found.add(path)
    return {str(path): sha256(path) for path in sorted(found)}


def _split(name: str, named: str) -> tuple[str | Path, str]:
    """Return the module, or the absolute path of the file, and the name in it."""
    file, colon, attribute = name.rpartition(":")
    if colon and file.endswith(".py") and attribute:
        return _path_of(file), attribute
    if colon or "/" in name or name.endswith(".py"):
        raise ValueError(f"{named} cannot be imported: expected FILE.py:NAME, such as {EXAMPLE}")
    module, _, attribute = name.rpartition(".")
    return module, attribute


def _import(where: str | Path) -> ModuleType:
    # Last, and for good: it hides nothing that is installed, and imports inside of functions find it later too.
    _search_users_code()
    importlib.invalidate_caches()
    try:
        return _import_file(where) if isinstance(where, Path) else importlib.import_module(where)
    except ImportError as error:
        error.msg += _hidden_by_ours(error.name or "")
        raise


def _import_file(path: Path) -> ModuleType:
    """Import a file under a module name of its own, which neither hides another module nor is hidden by one.

    It is a module in a package of the file's folder, so that it can import what lies beside it with a dot.
    """
    if not path.is_file():
        others = [other.name for other in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ImportError(f"there is no file {path}{did_you_mean(path.name, others)}")
    if "." in path.stem:
        raise ImportError(f"{path} has a dot in its name, which no module can have")
    _search_last(path.parent)
    name = _module_name(path)
    package = name.partition(".")[0]
    if package not in sys.modules:
        sys.modules[package] = ModuleType(package)
        sys.modules[package].__path__ = [str(path.parent)]
    return importlib.import_module(name)


def _module_name(where: str | Path) -> str:
    """Return the name of the module in sys.modules."""
    if isinstance(where, str):
        return where
    folder = hashlib.sha256(str(where.parent.resolve()).encode()).hexdigest()[:16]
    return f"user_code_{folder}.{where.stem}"


def _attribute(module: ModuleType, where: str | Path, attribute: str) -> Any:
    try:
        return getattr(module, attribute)
    except AttributeError:
        shown = where if isinstance(where, Path) else f"module '{where}'"
        public = [name for name in vars(module) if not name.startswith("_")]
        hint = did_you_mean(attribute, public).removesuffix(".")
        raise AttributeError(f"{shown} has no attribute '{attribute}'{hint}") from None


def _path_of(file: str) -> Path:
    """Return a file of the user's: from the copy of a submission, where that has it."""
    path = code_folder() / file
    return path if path.exists() else Path.cwd() / file


def _search_users_code() -> None:
    _search_last(code_folder())
    _search_last(Path.cwd())


def _search_last(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _hidden_by_ours(missing: str) -> str:
    """Explain a module that is missing because a package of ours has the name of one of the user's."""
    package = missing.partition(".")[0]
    hidden = [path for path in (code_folder() / package, code_folder() / f"{package}.py") if path.exists()]
    if package not in OURS or not hidden:
        return ""
    return (
        f"; `{package}` is a package of paretrain, not your {hidden[0]}. Name the file, such as {package}/tiny.py:Net, "
        "and import what lies beside it with a dot: from .blocks import Block"
    )


def _refuse_standard_library(module: str, named: str, expected: str) -> None:
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise ValueError(f"{named} is of Python's own module {module}; {expected}")


def _declared_return(function: Callable[..., Any]) -> type | None:
    """Return the class that a function declares to return; None if it declares none, or none that can be found."""
    try:
        returned = typing.get_type_hints(function).get("return")
    except Exception:  # Names that exist for type checkers alone.
        return None
    return returned if inspect.isclass(returned) else None


def _is_users(module: str, file: str) -> bool:
    """Return whether a module is neither ours, nor Python's, nor installed."""
    package = module.partition(".")[0]
    return (
        package not in OURS
        and package not in sys.stdlib_module_names
        and module != "__main__"
        and "site-packages" not in file
        and not file.startswith("<frozen")
    )
