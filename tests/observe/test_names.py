"""The names of tasks, classes, units, runs and files are shown as they are, in every medium."""

import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console

from tests.support.pages import Page
from tests.support.run_folders import write_run
from tests.support.runs import without_times
from trainer.commands.model_card import code, markdown
from trainer.data.format.specs import ClassificationSpec
from trainer.errors import say_error
from trainer.observe.compare import comparison
from trainer.observe.metrics import MetricsLog
from trainer.observe.predictions import Maps, Predictions
from trainer.observe.progress import Progress, eval_line
from trainer.observe.read_run import read_run
from trainer.observe.report import figures
from trainer.observe.report.page import write_report
from trainer.observe.report.predictions import draw
from trainer.observe.report.svg import label
from trainer.observe.tracker import flatten
from trainer.plain import one_line, printable
from trainer.terminal import Terminal

NAMES = (
    *("[/x]", "[red]", "speed [m/s]", "[link=http://x]y[/link]", ":smile:", "\x1b[31mred\x1b[0m", "\x07bell\x9b2J"),
    *("two\nlines", "tab\there", "<script>alert(1)</script>", "</svg><img src=x onerror=alert(1)>", "a' onload='x"),
    *("`code`", "| a | b |", "a$b$", r"$\frac$", "_x_ *y*", "x" * 300, "\u202egnp.exe", "مهمة"),
    *("\U0001f469\u200d\U0001f680", "任务"),
    *("\ud800", "\ufffe", "font-family: x; y", ' id="a_1"', "#010203", "%2F", "a/b", "&lt;", "</title>", "--><b>"),
)  # fmt: skip


def hostile_run(folder: Path, names: tuple[str, ...]) -> Path:
    run = write_run(folder, names)
    log = MetricsLog(run / "metrics.jsonl", resume_step=40)
    record = {
        "kind": "eval",
        "step": 40,
        "errors": dict.fromkeys(names, 2.5),
        "losses": {},
        "samples": 1,
        "duration_seconds": 1,
    }
    units = {name: names[number % 3] for number, name in enumerate(names)}
    log.write(record | {"units": units, "by_class": {names[0]: dict.fromkeys(names, 50.0)}})
    log.write({"kind": "note", "step": 40, "text": " ".join(names)})
    log.close()
    (run / "summary.json").unlink()
    info = {"command": " ".join(names), "versions": {names[0]: names[1]}, "another": list(names)}
    (run / "run.json").write_text(json.dumps(info))
    return run


@pytest.mark.long
@pytest.mark.parametrize("names", [NAMES, NAMES[9:12]])
def test_no_name_becomes_markup_in_a_report(tmp_path: Path, names: tuple[str, ...]) -> None:
    plain = tuple(f"task{number}" for number in range(len(names)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_report([hostile_run(tmp_path / "a", names)], tmp_path / "hostile.html")
    write_report([hostile_run(tmp_path / "b", plain)], tmp_path / "plain.html")
    hostile, expected = Page(tmp_path / "hostile.html"), Page(tmp_path / "plain.html")
    # Tags and their attributes are those of a page whose names are words; every name can be read on it, whole.
    assert {tag: hostile.tags.count(tag) for tag in set(hostile.tags)} == {
        tag: expected.tags.count(tag) for tag in set(expected.tags)
    }
    assert [link for link in hostile.links if "script" in link or "http:" in link] == []
    for name in names:
        assert printable(name) in hostile.text
    assert not set(hostile.source) & set("\x1b\x07\x9b\u202e\ufffe")


@pytest.mark.long
@pytest.mark.drawings
@pytest.mark.parametrize("name", NAMES)
def test_a_drawing_shows_a_name(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = figures.cosine_map(np.eye(2), [name, "y"])
        maps = Maps(name, (), np.zeros((1, 2, 2, 1)), np.zeros((1, 2, 2, 1)), np.ones((1, 2, 2), bool))
        drawn += draw(Predictions(1, np.zeros((1, 2, 2, 3), np.uint8), (maps,)))
    assert drawn.count(label(name, 20).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")) >= 2


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_a_terminal_shows_a_name(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("name: run\n")
    tasks = {"tasks": [name], "final_errors": {name: 1.0}, "best_errors": {name: 1.0}, "best_step": 1, "steps": 1}
    (tmp_path / "run" / "summary.json").write_text(json.dumps(tasks | {"units": {name: name}}))
    shown = io.StringIO()
    Terminal(file=shown, width=400, force_terminal=False).print(comparison([read_run(tmp_path / "run")]))
    assert one_line(name)[:20] in shown.getvalue()

    record = {"kind": "eval", "step": 1, "errors": {name: 1.0}, "units": {name: name}, "duration_seconds": 1.0}
    stream = io.StringIO()
    with Progress(tmp_path / "log.txt", 1, 0, Console(file=stream, force_terminal=False)) as progress:
        progress.eval(record)
        progress.note(name)
    assert without_times(tmp_path / "log.txt") == f"{eval_line(record)}\n{printable(name)}\n"
    say_error(f"no task {name}")
    for written in (shown.getvalue(), stream.getvalue(), (tmp_path / "log.txt").read_text(), capsys.readouterr().err):
        assert printable(name)[:20] in written or one_line(name)[:20] in written
        assert not set(written) & set("\x1b\x07\x9b\u202e\ud800")


def test_two_names_never_make_one_key_of_wandb() -> None:
    record: dict[str, Any] = {
        "kind": "eval",
        "step": 1,
        "by_class": {"a/b": {"c": 1.0}, "a": {"b/c": 2.0, "b%2Fc": 3.0}},
    }
    found = flatten(record)
    assert sorted(found.values()) == [1, 1.0, 2.0, 3.0]
    assert all(key.count("/") == 3 for key in found if key != "step")


@pytest.mark.parametrize("name", NAMES)
def test_markdown_shows_a_name(name: str) -> None:
    assert "\n" not in markdown(name)
    assert "<" not in markdown(name)
    # What a backslash does not precede is no mark of Markdown.
    bare = markdown(name).replace("\\\\", "")
    assert not [mark for at, mark in enumerate(bare) if mark in "`*_[]|$~#" and (at == 0 or bare[at - 1] != "\\")]
    fence = code(name)[: len(code(name)) - len(code(name).lstrip("`"))]
    assert code(name).endswith(fence)
    assert fence not in code(name)[len(fence) : -len(fence)]


@pytest.mark.parametrize(("name", "classes"), [("a\nb", ("x", "y")), ("a", ("x", "\x1b"))])
def test_a_conversion_refuses_names_with_control_characters(name: str, classes: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match="control"):
        ClassificationSpec(name=name, classes=classes)
