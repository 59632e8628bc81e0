"""Make a data folder of the samples that a function of the user returns."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.config.yaml_file import parse_yaml
from trainer.data.format.manifest import Manifest
from trainer.data.format.shards import Source, write_shards
from trainer.data.format.specs import doubled
from trainer.errors import UserError
from trainer.user_code import call, is_user_code, load

EXPECTED = "expected a function that returns a trainer.data.format.shards.Source"


def write_custom(path: str, options: Sequence[str], out: Path) -> Manifest:
    """Call the function `path` and write the samples that it returns.

    Args:
        path: names a function that returns a `trainer.data.format.shards.Source`; see `trainer.user_code`.
        options: the function's keyword arguments, `key=value` with YAML values.
        out: the data folder to write.

    Raises:
        UserError: there is no such function, it does not accept the options, or its result is not a Source; or as
            `write_shards`.
    """
    function, pairs = _find(path), list(map(_parse, options))
    if doubles := doubled(key for key, _ in pairs):
        raise UserError(f"{path}: {doubles[0]!r} is given twice.")
    keywords = dict(pairs)
    try:
        inspect.signature(function).bind(**keywords)
    except TypeError as error:
        raise UserError(f"{path} cannot be called with {', '.join(options) or 'no options'}: {error}.") from None
    # Samples may come from generators, so the user's code also runs while shards are written.
    try:
        return call(_write, path, keywords, function, out, doing=f"{path} failed")
    except ValueError as error:
        raise UserError(f"{error}.") from error


def _write(path: str, keywords: Mapping[str, Any], function: Callable[..., Any], out: Path) -> Manifest:
    source = function(**keywords)
    if not isinstance(source, Source):
        raise UserError(f"{path} returned {type(source).__name__}; {EXPECTED}.")
    return write_shards(
        out,
        name=source.name,
        made_by={"source": path, **keywords},
        inputs=source.inputs,
        tasks=source.tasks,
        splits=source.splits,
    )


def _find(path: str) -> Callable[..., Any]:
    if not is_user_code(path):
        raise UserError(f"Expected a function, such as my_data.py:load or my_data.load, found {path!r}.")
    try:
        return load(path, Source, named=path, expected=EXPECTED)
    except ValueError as error:
        raise UserError(f"{error}.") from error


def _parse(option: str) -> tuple[str, Any]:
    key, equals, value = option.partition("=")
    if not (key and equals):
        raise UserError(f"Expected key=value, found {option!r}.")
    return key, parse_yaml(value, repr(option))
