"""Mutated configurations, and overrides, under `paretrain check`."""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import yaml

from tests.fuzz import folders, mutate
from tests.fuzz.case import Change, Target

CONFIG = Path("config.yaml")


def make() -> None:
    """Make a data folder and a configuration."""
    folders.write_data(Path("data"))
    folders.write_neighbour(Path("neighbour"))
    folders.write_config(CONFIG)
    # Every key, so that each is a place to change.
    from trainer.config.file import load_config, to_yaml

    CONFIG.write_text(to_yaml(load_config(CONFIG)))


def change(draw: Random, command: Sequence[str]) -> tuple[Change, Sequence[str]]:
    """Change the values, or the text, of the file; or override one."""
    way = draw.choice(("values", "values", "override", "text", "bytes"))
    old = yaml.safe_load(CONFIG.read_text())
    if way == "bytes":
        what, content = mutate.content(draw, CONFIG.read_bytes())
        CONFIG.write_bytes(content)
        # A letter of data.path may have become another: then the folder of that name is what is missing.
        sections = [f"{section}{mark}" for section, value in old.items() if isinstance(value, dict) for mark in ":."]
        return Change(what, (CONFIG.name, "data folder", *sections), may_differ=True), command
    if way == "text":
        what, text = mutate.text(draw, CONFIG.read_text())
        CONFIG.write_text(text, errors="surrogatepass")
        return Change(f"{what!r:.100}", (CONFIG.name, *_words(what)), may_differ=True), command
    where, new = mutate.tree(draw, old)
    while _at(new, ("model", "compile")) is True:  # Right, but it takes a minute.
        where, new = mutate.tree(draw, old)
    if way == "override":
        where = draw.choice([path for path in mutate.paths(old) if path and not isinstance(path[-1], int)])
        text = draw.choice((*map(str, mutate.LEAVES), "[", "{", "!!int abc", "2026-02-30", "9" * 5_000))
        override = f"{'.'.join(map(str, where))}={text}"
        return Change(f"{override:.100}", _fields(where), may_differ=True), [*command, override]
    CONFIG.write_text(yaml.safe_dump(new, sort_keys=False))
    return Change(f"{where} = {_at(new, where)!r:.100}", (*_fields(where), CONFIG.name), may_differ=True), command


def _fields(where: mutate.Path) -> tuple[str, ...]:
    return tuple(part for part in where if isinstance(part, str))


def _words(line: str) -> tuple[str, ...]:
    return (line.partition(":")[0].strip(" \t-?\ufeff\x07"),)


def _at(value: Any, where: mutate.Path) -> Any:
    try:
        return mutate.at(value, where)
    except (KeyError, IndexError, TypeError):
        return "removed"


def result(command: Sequence[str], said: str) -> str:
    """Read what was accepted, write it and read it back: a value that changes on the way was not understood."""
    from trainer.config.file import load_config, parse_config, to_yaml

    experiment = load_config(CONFIG, command[2:])
    again = parse_config(yaml.safe_load(to_yaml(experiment)), "what was written")
    assert again == experiment, "it does not come back as it was read"
    return said


TARGET = Target(
    "configurations",
    make,
    change,
    commands=(("check", "config.yaml"),),
    draws=(1,),
    result=result,
    writes=(r"runs.*", r"home.*"),
)
