"""The user's own source: a function by its dotted path, whose samples become a data folder."""

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from trainer.data.format.manifest import Manifest
from trainer.data.format.shards import Source, write_shards
from trainer.errors import UserError


def write_custom(path: str, options: Sequence[str], out: Path) -> Manifest:
    """Calls the function `path` and writes what it gives.

    Args:
        path: dotted path of a function that returns a `trainer.data.format.shards.Source`; the current folder counts.
        options: `key=value`, the function's keyword arguments; values are YAML.
        out: the data folder to make.

    Raises:
        UserError: no such function, options that it does not take, or another result; or as `write_shards`.
    """
    function, keywords = _find(path), dict(map(_parse, options))
    try:
        inspect.signature(function).bind(**keywords)
    except TypeError as error:
        raise UserError(f"{path} cannot be called with {', '.join(options) or 'no options'}: {error}.") from None
    source = function(**keywords)
    if not isinstance(source, Source):
        raise UserError(f"{path} should return a trainer.data.format.shards.Source, found {type(source).__name__}.")
    return write_shards(
        out,
        name=source.name,
        made_by={"source": path, **keywords},
        inputs=source.inputs,
        tasks=source.tasks,
        splits=source.splits,
    )


def _find(path: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(".")
    if not module:
        raise UserError(f"Expected the dotted path of a function, such as my_data.load, found {path!r}.")
    sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{path} cannot be imported: {error}.") from error
    finally:
        sys.path.remove(str(Path.cwd()))
    if not callable(function):
        raise UserError(f"{path} is no function, but {type(function).__name__}.")
    return function


def _parse(option: str) -> tuple[str, Any]:
    key, equals, value = option.partition("=")
    if not (key and equals):
        raise UserError(f"Expected key=value, found {option!r}.")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"{option!r}: its value is not YAML: {error}.") from None
