"""What people see of runs, the report and the table of `paretrain compare`, read back."""

import re
import warnings
from collections.abc import Sequence
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

from rich.console import Console

from trainer.observe.compare import comparison
from trainer.observe.read_run import read_run
from trainer.observe.report.page import write_report

VOID = {"meta", "br", "img", "link", "hr", "input"}


class Page(HTMLParser):
    """Reads a page as a browser would, strictly: every tag closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self.bold: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "action")
        ]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if self._open and self._open[-1] in ("td", "th", "b"):
            self.rows[-1][-1] += data
        if self._open and self._open[-1] == "b":
            self.bold.append(data)

    def row(self, label: str) -> list[str]:
        return next(row for row in self.rows if row[0] == label)


def report(out: Path, *run_dirs: Path) -> Page:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning would be noise on the user's screen
        write_report(run_dirs, out)
    page = Page(out)
    assert "script" not in page.tags
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)", page.source))
    assert "@import" not in page.source
    assert not list(out.parent.glob("*.tmp"))
    return page


def printed(
    *folders: Path, split: str | None = None, baseline: Sequence[Path] = (), metric: str | None = None
) -> list[list[str]]:
    """The table's rows as words, with **bold** marked."""
    page = StringIO()
    console = Console(file=page, width=200, force_terminal=True, color_system="standard")
    console.print(comparison([*map(read_run, folders)], split, [*map(read_run, baseline)], metric))
    text = re.sub(r"\x1b\[[0-9;]*m", "", re.sub(r"\x1b\[1m *", " **", page.getvalue()))
    return [line.split() for line in text.splitlines() if line.strip()]


def row(rows: list[list[str]], name: str) -> list[str]:
    """The cells of one run."""
    return next(words[1:] for words in rows if words[0] == name)
