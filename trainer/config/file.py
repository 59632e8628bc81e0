"""Read a configuration file, with overrides, into an `Experiment`, and write it back.

Unknown keys and values of the wrong type are errors that say what to type.
"""

import json
import math
import reprlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import ValidationError

from trainer.config.schema import Experiment
from trainer.config.section import Section
from trainer.config.yaml_file import MAX_DEPTH, dump_yaml, parse_yaml, read_yaml
from trainer.errors import UserError, did_you_mean

MAX_TEXT = 4096
"""Longest text; a path may be as long."""
MAX_FAULTS = 10
"""Number of faults that one error names."""

AnySection = TypeVar("AnySection", bound=Section)

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100


def load_config(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read a YAML file and apply `a.b=value` overrides, whose values are YAML too.

    If a key is overridden several times, the last value counts.

    Raises:
        UserError: the file is missing or not YAML, or a key or value is wrong. The message names the key and suggests a
            correction.
    """
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"no configuration file {path}. For examples, type: ls configs/") from None
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
        raise UserError(f"{source} must hold keys and values, found {type(values).__name__}")
    faults = list(_unusable(values))
    if not faults:
        try:
            # Of JSON, strict pydantic takes a list as a tuple and a text as a Path, but still refuses "5" as a number.
            return schema.model_validate_json(json.dumps(values))
        except ValidationError as error:
            faults = [_explain(fault, schema) for fault in error.errors()]
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
            raise UserError(f"found {_short.repr(override)}, expected key=value, such as train.steps=100")
        if len(parents) >= MAX_DEPTH:
            raise UserError(f"override {_short.repr(override)}: its key has {len(parents) + 1} parts")
        target = values
        for depth, parent in enumerate([*parents, last]):
            if not isinstance(target, dict):
                found = "the configuration" if depth == 0 else f"'{'.'.join(parents[:depth])}'"
                raise UserError(
                    f"override {_short.repr(override)}: {found} is {_short.repr(target)}, not a section with keys"
                )
            if depth < len(parents):
                target = target.setdefault(parent, {})
        target[last] = parse_yaml(text, f"override {_short.repr(override)}")
    return values


def _unusable(values: Any, key: str = "") -> Iterator[str]:
    """Yield what no field may hold, not even free `options`: infinite numbers, and text with control characters."""
    if isinstance(values, dict):
        for name, value in values.items():
            if not is_printable(name):
                yield f"a key with control characters, found {_short.repr(name)}"
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
            f"found {_short.repr(values)}"
        )


def is_printable(text: str) -> bool:
    """Return whether a text has no line breaks and no control characters."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)


def _explain(fault: Mapping[str, Any], schema: type[Section]) -> str:
    location, kind = fault["loc"], fault["type"]
    key = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        known = _fields_at(schema, location[:-1])
        return f"unknown key {_short.repr(key)}{did_you_mean(str(location[-1]), known)} Known here: {', '.join(known)}"
    if kind == "missing":
        return f"missing key '{key}'"
    if kind == "value_error":
        return f"{key + ': ' if key else ''}{fault['ctx']['error']}"
    found = fault["input"] if not isinstance(fault["input"], dict) else "a section with keys"
    return f"{key}: {fault['msg'][0].lower()}{fault['msg'][1:]}, found {_short.repr(found)}"


def _fields_at(schema: type[Section], location: Sequence[str | int]) -> list[str]:
    section: Any = schema
    for part in location:
        if isinstance(part, int):
            continue  # The item of a list: the section before it.
        if get_origin(section) is dict:  # Of sections, by names that the user chooses.
            section = get_args(section)[1]
            continue
        section = section.model_fields[part].annotation
        if get_origin(section) is not dict:
            section = next(iter(get_args(section)), section)  # `X | None` and `tuple[X, ...]` hold X.
    return list(section.model_fields)
