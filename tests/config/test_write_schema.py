"""The generated reference of the configuration is up to date and complete."""

from pathlib import Path

import pytest

from trainer.config.write_schema import documents, json_schema

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", documents())
def test_the_reference_is_what_the_schema_says(name: str) -> None:
    found = (ROOT / "docs" / name).read_text()
    assert found == documents()[name], "type: python -m trainer.config.write_schema"


def test_every_key_is_documented() -> None:
    schema = json_schema()
    for section in (schema, *schema["$defs"].values()):
        for name, field in section["properties"].items():
            assert "$ref" in field or field.get("description"), f"{section['title']}.{name} has no documentation"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_editors_find_the_schema_of_every_configuration(path: Path) -> None:
    _, _, schema = path.read_text().splitlines()[0].partition("# yaml-language-server: $schema=")
    assert (path.parent / schema).resolve() == ROOT / "docs" / "config.schema.json"
