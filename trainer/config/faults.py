"""Word the faults that pydantic finds in a configuration: what was found, what is expected, and what to type."""

import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from trainer.config.section import Section
from trainer.config.sections.limits import PATTERNS
from trainer.errors import did_you_mean

EXPECTED = {
    "model_type": "a section with keys",
    "dict_type": "keys and values, such as {key: value}",
    "string_type": "a text",
}
"""Kind of a fault -> what is expected, where pydantic calls it by the words of another language."""

WORDS = {"None": "null", "True": "true", "False": "false"}
"""Python's words -> YAML's."""

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100


def explain(fault: Mapping[str, Any], schema: type[Section]) -> str:
    """Return a sentence about a fault.

    Args:
        fault: of `ValidationError.errors()`.
        schema: the section that was validated.
    """
    location, kind = fault["loc"], fault["type"]
    key = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        known = list(_section_at(schema, location[:-1]).model_fields)
        return f"unknown key {shown(key)}{did_you_mean(str(location[-1]), known)} Known here: {', '.join(known)}"
    if kind == "missing":
        return f"missing key '{key}'{_advice(schema, location[:-1], location[-1:])}"
    if kind == "value_error":
        return f"{key + ': ' if key else ''}{fault['ctx']['error']}"
    found = fault["input"] if not isinstance(fault["input"], dict) else "a section with keys"
    said = f"{fault['msg'][0].lower()}{fault['msg'][1:]}"
    if kind == "too_short":
        least, found = fault["ctx"]["min_length"], fault["input"]
        said = f"expected at least {least} item{'' if least == 1 else 's'}"
    elif kind == "too_long":
        said, found = f"expected at most {fault['ctx']['max_length']} items", len(fault["input"])
    elif kind in ("list_type", "tuple_type"):
        said = f"expected a list, such as [{found if isinstance(found, str) else 'a, b'}]"
    elif expected := EXPECTED.get(kind) or PATTERNS.get(fault.get("ctx", {}).get("pattern")):
        said = f"expected {expected}"
    advice = _advice(schema, location) if kind == "model_type" else ""
    return f"{key}: {said}, found {shown(found)}{advice}"


def apart(faults: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Leave out the faults that others cause: pydantic counts only the items without a fault."""
    outer = {fault["loc"][:depth] for fault in faults for depth in range(len(fault["loc"]))}
    return [fault for fault in faults if fault["type"] != "too_short" or fault["loc"] not in outer]


def shown(value: Any) -> str:
    """Return a value, shortened, in the words of a configuration."""
    return WORDS.get(repr(value)) or _short.repr(value)


def _advice(schema: type[Section], location: Sequence[str | int], names: Iterable[str] = ()) -> str:
    """Return the end of a sentence: what to type for the keys of the section at a location, by default those it needs.

    Returns:
        Nothing where no override can name them, or no example of their values is known.
    """
    if any(isinstance(part, int) for part in location):
        return ""  # The item of a list.
    examples = list(_examples(_section_at(schema, location), [str(part) for part in location], names))
    return f". Type {' '.join(examples)}, say" if examples else ""


def _examples(section: type[Section], location: Sequence[str], names: Iterable[str] = ()) -> Iterator[str]:
    """Yield an example of each key in `names`; of none, of each required key, or else of the first key."""
    fields = section.model_fields
    for name in list(names) or [name for name in fields if fields[name].is_required()] or list(fields)[:1]:
        field, inside = fields[name], [*location, name]
        inner = _held(field.annotation)
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from _examples(inner, inside)
        elif field.examples or not field.is_required():
            example = field.examples[0] if field.examples else field.default
            yield f"{'.'.join(inside)}={WORDS.get(repr(example), example)}"


def _section_at(schema: type[Section], location: Sequence[str | int]) -> type[Section]:
    """Return the section at a location; of a list or a mapping of sections, that of its items."""
    section: Any = schema
    for part in location:
        if isinstance(part, int):
            continue  # The item of a list: the section before it.
        section = get_args(section)[1] if get_origin(section) is dict else _held(section.model_fields[part].annotation)
    found: type[Section] = section
    return found


def _held(annotation: Any) -> Any:
    """Return X of `X | None` and `tuple[X, ...]`; anything else as it is."""
    return annotation if get_origin(annotation) is dict else next(iter(get_args(annotation)), annotation)
