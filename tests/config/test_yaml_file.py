"""YAML 1.2 files: what words mean, and that every hostile file ends in one sentence with its line."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.config.yaml_file import MAX_BYTES, dump_yaml, parse_yaml, read_yaml
from trainer.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("+1", 1),
        ("5e-4", 0.0005),
        ("1E5", 100000.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("2024-13-45", "2024-13-45"),
        ("0b11", "0b11"),
        ("!!str 010", "010"),
        ("!!float 3", 3.0),
        ("'5'", "5"),
        ("[yes, no, on, off, y]", ["yes", "no", "on", "off", "y"]),
    ],
)
def test_words_mean_what_the_core_schema_says(text: str, value: Any) -> None:
    found = parse_yaml(f"a: {text}", "x")["a"]
    assert found == value
    assert type(found) is type(value)


def test_keys_are_text_as_they_are_written() -> None:
    assert parse_yaml("1: a\n01: b\nyes: c\nnull: d", "x") == {"1": "a", "01": "b", "yes": "c", "null": "d"}


def test_an_alias_repeats_a_value() -> None:
    assert parse_yaml("\ufeffa: &x [1]\nb: *x", "x") == {"a": [1], "b": [1]}


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(12))


@pytest.mark.long
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x: 1\na: !!int abc", "line 2, column 4: expected int, found 'abc'"),
        ("a: !!python/object/apply:os.system [ls]", "line 1, column 4: the tag"),
        ("a: !!timestamp 2024-01-01", "the tag"),
        ("a: !!set {x}", "the tag"),
        ("a: " + "9" * 5000, "is beyond 64 bits"),
        ("a: 0x" + "f" * 5000, "is beyond 64 bits"),
        ("a: 9223372036854775808", "9223372036854775808 is beyond 64 bits"),
        ("a: &x [*x]", "an alias inside the value"),
        ("a: &x {b: *x}", "an alias inside the value"),
        (BOMB, "more than 100,000 values"),
        ("\n" + "[" * 100_000, "line 2, column 51: nested deeper"),
        ("- " * 10_000, "nested deeper"),
        ("a: 1\nb: 1\na: 2", "line 3, column 1: key given twice: a"),
        ("a: &a {b: 1}\nc:\n  <<: *a", "line 3, column 3: merge keys"),
        ("? [a]\n: 1", "expected text"),
        ("--- 1\n--- 2", "expected a single document"),
        ("a:\n\tb: 1", "line 2, column 1"),
        ("a: 1\nb: \x00", "line 2 holds the character 0x00"),
        ("a: \udc80", "line 1 holds the character"),
        ('a: "\\ud800"', "half of a surrogate pair"),
        ("a: *b", "undefined alias 'b'"),
        ("a: [1", "line 1"),
    ],
)
def test_what_is_no_plain_yaml_is_refused_with_its_line(text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_yaml(text, "some.yaml")
    assert str(error.value).startswith("some.yaml is not YAML: line ")
    assert said in str(error.value)
    assert len(str(error.value)) < 300


def test_what_is_no_text_file_is_refused(tmp_path: Path) -> None:
    fifo, large, wide = tmp_path / "fifo", tmp_path / "large", tmp_path / "wide"
    os.mkfifo(fifo)
    large.write_bytes(b" " * (MAX_BYTES + 1))
    wide.write_text("a: 1", encoding="utf-16")
    for path, said in {
        fifo: "not a regular file",
        Path("/dev/zero"): "not a regular file",
        tmp_path: "not a regular file",
        large: "expected at most",
        wide: "not UTF-8",
    }.items():
        with pytest.raises(UserError, match=said):
            read_yaml(path)


WORDS = [
    *("yes", "010", "0o10", "5e-4", "1_000", "1:30", "2024-01-01", "off", "~", "", "null"),
    *("=", "<<", "a: b", "é", "1e5", "#x", " x ", "-", "true"),
]


@pytest.mark.long
@pytest.mark.parametrize("value", [*WORDS, 1e-5, 1e16, float("inf"), 3, True, None, [], {}])
def test_what_is_written_is_read_back_by_either_version(value: Any) -> None:
    written = dump_yaml({"a": value})
    assert parse_yaml(written, "x") == yaml.safe_load(written) == {"a": value}
