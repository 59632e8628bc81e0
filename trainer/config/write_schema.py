"""Write the reference of the configuration from its schema: python -m trainer.config.write_schema [FOLDER].

config.schema.json is for editors, which complete and check configs/*.yaml by it; configuration.md is for people. Both
belong to the repository's folder docs/, and a test compares them with what this module would write.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.config.schema import Experiment
from trainer.config.section import ONLY_WITH
from trainer.errors import run_command
from trainer.files import replace

DOCS = Path(__file__).parents[2] / "docs"
HEAD = """\
# Configuration

A run is one YAML file, such as [configs/digits.yaml](../configs/digits.yaml). Any key can be replaced on the command
line: `paretrain train configs/digits.yaml train.steps=100 optimizer.schedule=cosine`. Unknown keys and values of the
wrong type are errors. The run's folder keeps the complete configuration, defaults included, in `config.yaml`.

Editors that know the YAML language server complete keys by [config.schema.json](config.schema.json) where a file
begins with `# yaml-language-server: $schema=../docs/config.schema.json`.

This page is generated from [trainer/config/schema.py](../trainer/config/schema.py) and its sections:
`python -m trainer.config.write_schema`.
"""

SAFETY = 100_000
"""Bounds from here on only keep nonsense out, and are left out of the page for people."""

Schema = Mapping[str, Any]


def documents() -> dict[str, str]:
    """Return the generated files: name -> content."""
    schema = json_schema()
    text = json.dumps(schema, indent=1, ensure_ascii=False)
    return {"config.schema.json": f"{text}\n", "configuration.md": page(schema)}


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a configuration file."""
    schema = Experiment.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        section["description"] = _one_line(section["description"])
        for field in section["properties"].values():
            field.pop("title", None)  # The key once more, in capitals.
            condition = field.pop(ONLY_WITH, None)
            only = f" Only with {condition}." if condition else ""
            if "description" in field:  # A section's own description stands in its definition.
                field["description"] = _one_line(field["description"]) + only
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def page(schema: Schema) -> str:
    """Return the reference for people, as Markdown: a table per section."""
    parts = [HEAD]
    for path, section in _sections(schema, schema, ""):
        rows = [_row(name, field, section, schema) for name, field in section["properties"].items()]
        title = f"## {path}" if path else "## Top level"
        table = "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])
        parts.append(f"{title}\n\n{section['description']}\n\n{table}\n")
    return "\n".join(parts)


def _sections(section: Schema, schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Yield a section and those inside it, each with its dotted path."""
    yield path, section
    for name, field in section["properties"].items():
        inner, of_names = _section_of(field, schema), _section_of(_values_of(field), schema)
        if inner or of_names:
            where = f"{path}.{name}" if path else name
            yield from _sections(inner or of_names or {}, schema, where if inner else f"{where}.NAME")


def _section_of(field: Schema, schema: Schema) -> Schema | None:
    """Return the section that a field holds; None: it holds a value."""
    for kind in (field, field.get("items", {}), *field.get("anyOf", ())):
        if "$ref" in kind:
            found: Schema = schema["$defs"][kind["$ref"].rpartition("/")[2]]
            return found
    return None


def _values_of(field: Schema) -> Schema:
    """Return what the values of a mapping are; empty for anything else."""
    values = field.get("additionalProperties")
    return values if isinstance(values, dict) else {}


def _row(name: str, field: Schema, section: Schema, schema: Schema) -> str:
    inner = _section_of(field, schema)
    meaning = field["description"] if "description" in field or inner is None else inner["description"]
    if name in section.get("required", ()):
        default = "required"
    elif isinstance(field["default"], dict) and inner:
        default = ""  # Each key inside has one of its own.
    else:
        default = f"`{json.dumps(field['default'])}`"
    return f"| `{name}` | {_type(field)} | {default} | {_escape(meaning)} |"


def _type(field: Schema) -> str:
    """Return the type of a field in words, such as `integer, >= 0`."""
    if "anyOf" in field:
        return " or ".join(_type(kind) for kind in field["anyOf"])
    if "$ref" in field:
        return "section"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    kind: str = field["type"]
    if kind == "array":
        return "list of sections" if "$ref" in field["items"] else f"list of {_type(field['items'])}"
    if kind == "string":
        return "path" if field.get("format") == "path" else "text"
    if kind == "object":
        values = field["additionalProperties"]
        return "mapping" if values is True else f"mapping of names to {_type(values)}"
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    bounds = [f"{sign} {field[key]:g}" for key, sign in signs.items() if abs(field.get(key, SAFETY)) < SAFETY]
    return ", ".join([kind, *bounds])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _escape(text: str) -> str:
    """Escape what would end a cell of a table, or be read as markup."""
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def main() -> None:
    """Write the files to docs/, or to the folder that the command line names."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS
    for name, content in documents().items():
        replace(folder / name, content.encode())
        print(folder / name)


if __name__ == "__main__":
    sys.exit(run_command(main))
