"""Read the project's pages: their blocks, commands, links, and the files and configuration keys that they name."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "launch/*.md", "benchmarks/*.md", "paretrain/theory/*.md")
    for path in ROOT.glob(pattern)
)

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ANY_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"(?:\]\(|src=\")([^)\s\"]+)")
_FILE = re.compile(r"(?:paretrain|trainer|models|launch|configs|benchmarks|examples|studies|tests|docs)/[\w./*-]*")
_KEY = re.compile(r"(?:data|model|balance|optimizer|train|checkpoint|parallel|wandb)(?:\.[a-z_]+)+")


def name(page: Path) -> str:
    """Name a page in a test's id."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """Return the page's blocks of code in a language, such as python."""
    return [text for kind, text in _BLOCK.findall(page.read_text()) if kind == language]


def spans(page: Path) -> list[str]:
    """Return what the page has in backticks outside of blocks."""
    return _SPAN.findall(_ANY_BLOCK.sub("", page.read_text()))


def commands(page: Path, program: str) -> list[list[str]]:
    """Return the words of each command of `program` in the page's console blocks, without the program itself."""
    lines = [line[2:] for block in blocks(page, "console") for line in block.splitlines() if line.startswith("$ ")]
    return [words[1:] for words in (shlex.split(line, comments=True) for line in lines) if words[0] == program]


def mentions(page: Path, program: str) -> list[list[str]]:
    """Return the same of the commands in backticks, which a sentence may have shortened."""
    return [shlex.split(span)[1:] for span in spans(page) if span.startswith(f"{program} ") and "..." not in span]


def links(page: Path) -> list[Path]:
    """Return where the page's links to files of this project lead."""
    targets = [target.partition("#")[0] for target in _LINK.findall(_ANY_BLOCK.sub("", page.read_text()))]
    return [page.parent / target for target in targets if target and ":" not in target]


def files(page: Path) -> list[str]:
    """Return the files and folders of this project that the page names in backticks, perhaps with `*`."""
    return [found.rstrip(".") for span in spans(page) for found in _FILE.findall(span) if span.startswith(found)]


def keys(page: Path) -> list[str]:
    """Return the keys of the configuration that the page names in backticks, alone or with a value."""
    found = [span.partition("=")[0] for span in spans(page)]
    return [key for key in found if _KEY.fullmatch(key) and not key.endswith((".py", ".yaml", ".md"))]


def overrides(page: Path) -> list[str]:
    """Return the `key=value` that the page has in backticks."""
    return [span for span in spans(page) if _KEY.fullmatch(span.partition("=")[0]) and "=" in span]
