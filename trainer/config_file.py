"""A configuration's file: YAML and overrides to an `Experiment`, and back.

Unknown keys and wrong types are errors that say what to type.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from trainer.config import Experiment
from trainer.errors import UserError
from trainer.naming import did_you_mean


def load_config(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read a YAML file and apply `a.b=value` overrides, whose values are YAML too.

    Raises:
        UserError: the file is missing or not YAML, or a key or value is wrong; names the key and a likely correction.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise UserError(f"no configuration file {path}. Configurations of this project: ls configs/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return parse_config(_apply(_parse_yaml(text, str(path)), overrides), str(path))


def parse_config(values: Any, source: str) -> Experiment:
    """Validate plain values, as YAML gives them.

    Raises:
        UserError: a key or value is wrong; all faults are named at once.
    """
    if not isinstance(values, dict):
        raise UserError(f"{source} must hold keys and values, found {type(values).__name__}")
    try:
        # As JSON: there a list may become a tuple and a string a Path, but "5" is no number.
        return Experiment.model_validate_json(json.dumps(values))
    except ValidationError as error:
        faults = "\n".join(f"  {_explain(fault)}" for fault in error.errors())
        raise UserError(f"{source} is not a valid configuration:\n{faults}") from None
    except TypeError as error:
        raise UserError(f"{source} holds a value that JSON does not know (a date? quote it): {error}") from None


def to_yaml(experiment: Experiment) -> str:
    """Write every value, defaults included; `parse_config` reads it back unchanged."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """SafeLoader as YAML 1.2 has it: 5e-4 is a number, `off` a word; and a key given twice is refused."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # as the base class has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            keys = [key.value for key, _ in node.value]
            twice = sorted({key for key in keys if keys.count(key) > 1})
            raise yaml.constructor.ConstructorError(None, None, f"key given twice: {', '.join(twice)}", node.start_mark)
        return mapping


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not YAML: {error}") from None


def _apply(values: Any, overrides: Sequence[str]) -> Any:
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"found '{override}', expected key=value, such as train.steps=100")
        *parents, last = key.split(".")
        target = values
        for parent in parents:
            if not isinstance(target, dict) or not isinstance(target.setdefault(parent, {}), dict):
                raise UserError(f"override '{override}': '{parent}' is a value, not a section with keys")
            target = target[parent]
        if not isinstance(target, dict):
            raise UserError(f"override '{override}': the configuration is not made of keys and values")
        target[last] = _parse_yaml(text, f"override '{override}'")
    return values


def _explain(fault: Mapping[str, Any]) -> str:
    location, kind = fault["loc"], fault["type"]
    key = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        known = _fields_at(location[:-1])
        return f"unknown key '{key}'{did_you_mean(str(location[-1]), known)} Known here: {', '.join(known)}"
    if kind == "missing":
        return f"missing key '{key}'"
    if kind == "value_error":
        return f"{key + ': ' if key else ''}{fault['ctx']['error']}"
    found = fault["input"] if not isinstance(fault["input"], dict) else "a section with keys"
    return f"{key}: {fault['msg'][0].lower()}{fault['msg'][1:]}, found {found!r}"


def _fields_at(location: Sequence[str | int]) -> list[str]:
    section: Any = Experiment
    for part in location:
        annotation = section.model_fields[part].annotation
        section = next(iter(get_args(annotation)), annotation)  # X of `X | None`
    return list(section.model_fields)
