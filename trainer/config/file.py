"""Read a configuration file, with overrides, into an `Experiment`, and write it back.

Unknown keys and values of the wrong type are errors that say what to type.
"""

import json
import math
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError

from trainer.config.faults import apart, explain, shown
from trainer.config.schema import Experiment
from trainer.config.section import Section
from trainer.config.yaml_file import MAX_DEPTH, dump_yaml, parse_yaml, read_yaml
from trainer.errors import UserError, did_you_mean

MAX_TEXT = 4096
"""Longest text; a path may be as long."""
MAX_FAULTS = 10
"""Number of faults that one error names."""

AnySection = TypeVar("AnySection", bound=Section)


def load_config(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read a YAML file and apply `a.b=value` overrides, whose values are YAML too.

    If a key is overridden several times, the last value counts.

    Raises:
        UserError: the file is missing or not YAML, or a key or value is wrong. The message names the key and suggests a
            correction.
    """
    if path.is_dir():
        of_run = path / "config.yaml"
        expected = f"this run's: {of_run}" if of_run.is_file() else "a YAML file, such as configs/digits.yaml"
        raise UserError(f"{path} is a folder. Expected a configuration, {expected}")
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        hint = did_you_mean(path.name, [other.name for other in path.parent.glob("*.y*ml")])
        raise UserError(f"no configuration file {path}{hint} For examples, type: ls configs/") from None
    if values is None:
        raise UserError(f"{path} is empty. For examples, type: ls configs/")
    return parse_config(_apply(values, overrides), str(path))


def parse_config(values: Any, source: str) -> Experiment:
    """Validate plain values, such as those of a YAML file.

    Args:
        values: nested dictionaries.
        source: begins the message of an error, such as the file's path.

    Raises:
        UserError: a key or value is wrong. The message names all faults.
    """
    return parse_section(Experiment, values, source, "configuration")


def parse_section(schema: type[AnySection], values: Any, source: str, what: str) -> AnySection:
    """Validate plain values against a section with sections in it.

    Args:
        schema: the section.
        values: nested dictionaries.
        source: begins the message of an error, such as the file's path.
        what: the file is meant to be, such as "configuration".

    Raises:
        UserError: a key or value is wrong. The message names all faults.
    """
    if not isinstance(values, dict):
        raise UserError(f"{source} must hold keys and values, such as name: digits, found {shown(values)}")
    values = _with_integers(values, schema)
    faults = list(_unusable(values))
    if not faults:
        try:
            # Of JSON, strict pydantic takes a list as a tuple and a text as a Path, but still refuses "5" as a number.
            return schema.model_validate_json(json.dumps(values))
        except ValidationError as error:
            faults = [explain(fault, schema) for fault in apart(error.errors())]
    lines = "\n".join(f"  {fault}" for fault in faults[:MAX_FAULTS])
    more = f"\n  and {len(faults) - MAX_FAULTS} more" if len(faults) > MAX_FAULTS else ""
    raise UserError(f"{source} is not a valid {what}:\n{lines}{more}")


def to_yaml(experiment: Experiment) -> str:
    """Return a configuration as YAML, defaults included. `parse_config` reads it back unchanged."""
    return dump_yaml(experiment.model_dump(mode="json"))


def _apply(values: Any, overrides: Sequence[str]) -> Any:
    for override in overrides:
        key, equals, text = override.partition("=")
        *parents, last = key.split(".")
        if not equals or not all([*parents, last]):
            raise UserError(f"found {shown(override)}, expected key=value, such as train.steps=100")
        if len(parents) >= MAX_DEPTH:
            raise UserError(f"override {shown(override)}: its key has {len(parents) + 1} parts")
        target = values
        for depth, parent in enumerate([*parents, last]):
            if not isinstance(target, dict):
                found = "the configuration" if depth == 0 else f"'{'.'.join(parents[:depth])}'"
                raise UserError(f"override {shown(override)}: {found} is {shown(target)}, not a section with keys")
            if depth < len(parents):
                target = target.setdefault(parent, {})
        target[last] = parse_yaml(text, f"override {shown(override)}")
    return values


def _with_integers(values: Any, kind: Any) -> Any:
    """Return values in which whole floats, such as 1e3, are integers where their type asks for one."""
    inner, origin = get_args(kind), get_origin(kind)
    if isinstance(values, dict) and isinstance(kind, type) and issubclass(kind, Section):
        kinds = {name: field.annotation for name, field in kind.model_fields.items()}
        return {name: _with_integers(value, kinds.get(name)) for name, value in values.items()}
    if isinstance(values, dict) and origin is dict:
        return {name: _with_integers(value, inner[1]) for name, value in values.items()}
    if isinstance(values, list) and origin in (list, tuple):
        return [_with_integers(value, inner[0]) for value in values]
    if isinstance(values, float) and values.is_integer() and int in (kind, *inner):
        return int(values)
    for one in inner if origin in (Annotated, Union, UnionType) else ():
        values = _with_integers(values, one)
    return values


def _unusable(values: Any, key: str = "") -> Iterator[str]:
    """Yield what no field may hold, not even free `options`: infinite numbers, and text with control characters."""
    if isinstance(values, dict):
        for name, value in values.items():
            if not is_printable(name):
                yield f"a key with control characters, found {shown(name)}"
            else:
                yield from _unusable(value, f"{key}.{name}" if key else name)
    elif isinstance(values, list):
        for index, value in enumerate(values):
            yield from _unusable(value, f"{key}.{index}")
    elif isinstance(values, float) and not math.isfinite(values):
        yield f"{key}: expected a finite number, found {values}"
    elif isinstance(values, str) and not (is_printable(values) and len(values) <= MAX_TEXT):
        yield (
            f"{key}: expected a text of at most {MAX_TEXT} characters, without line breaks and control characters, "
            f"found {shown(values)}"
        )


def is_printable(text: str) -> bool:
    """Return whether a text has no line breaks and no control characters."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)
