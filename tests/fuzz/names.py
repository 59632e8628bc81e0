"""Hostile names: of tasks, classes, units, data and runs, in tables, logs and pages."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

from tests.fuzz import folders, mutate
from tests.fuzz.case import Change, Target
from tests.support.run_folders import write_run

MANIFEST = Path("data/manifest.json")
HARMLESS = "parts"


def make() -> None:
    """Make a data folder, a configuration and a run."""
    folders.write_data(Path("data"))
    folders.write_config(Path("config.yaml"))
    write_run(Path("runs/shown"), [HARMLESS, "even"], steps=20)
    folders.write_neighbour(Path("neighbour"))


def change(draw: Random, command: Sequence[str]) -> tuple[Change, Sequence[str]]:
    """Give something a hostile name."""
    name = draw.choice(mutate.NAMES) + draw.choice(("", "", draw.choice(mutate.NAMES)))
    shown = (name, json.dumps(name)[1:-1], repr(name)[1:-1])
    if command[0] in ("report", "compare"):
        folder = Path("runs/shown")
        what = draw.choice(("task", "run"))
        if what == "run" and (safe := name.replace("\0", "").replace("/", "")) and len(safe.encode()) < 250:
            target = Path("runs", f"x{safe}")
            folder.rename(target)
            return Change(f"run {name!r:.60}", (*shown, safe), may_differ=True), [command[0], str(target)]
        for path in (folder / "metrics.jsonl", folder / "summary.json"):
            path.write_text(path.read_text().replace(f'"{HARMLESS}"', json.dumps(name)))
        return Change(f"task {name!r:.60}", (*shown, "metrics.jsonl", "summary.json"), may_differ=True), command
    if draw.random() < 0.2:
        return Change(f"run {name!r:.60}", ("name", "override"), may_differ=True), [*command, f"name={name}"]
    manifest = json.loads(MANIFEST.read_text())
    what = draw.choice(("data", "task", "class", "unit", "made_by", "split"))
    if what == "data":
        manifest["name"] = name
    elif what == "task":
        manifest["tasks"][0]["name"] = name
    elif what == "class":
        manifest["tasks"][1]["classes"][0] = name
    elif what == "unit":
        manifest["tasks"][2]["unit"] = name
    elif what == "split":
        manifest["splits"][name] = manifest["splits"].pop("test")
    else:
        manifest["made_by"][name] = name
    MANIFEST.write_text(json.dumps(manifest))
    names = (*shown, "manifest.json", "name", "classes", "unit", "test", "samples are not those of the index")
    return Change(f"{what} {name!r:.60}", names, may_differ=True), command


def result(command: Sequence[str], said: str) -> str:
    """Look for names that were taken for markup, or for commands to the terminal."""
    controls = sorted({letter for letter in said if (ord(letter) < 32 and letter not in "\n\t") or ord(letter) == 127})
    assert not controls, f"prints control characters: {controls}"
    pages = [page.read_text() for page in Path("runs").glob("*/report.html")]
    assert not any("<script>alert" in page for page in pages), "the page holds a script"
    return said


TARGET = Target(
    "names",
    make,
    change,
    commands=(("check", "config.yaml"), ("data", "check", "data"), ("report", "runs/shown"), ("compare", "runs/shown")),
    draws=(5, 1, 1, 3),
    writes=(r"runs/[^/]*/\.?report\.html.*", r"runs/[^/]*", r"data", r"data/\.?contact_sheet.*", "runs"),
    result=result,
)
