"""The programs in the pages and docstrings run, and what README.md promises to a newcomer happens."""

import inspect
import os
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from paretrain import Balancer
from paretrain.window import Window
from tests.docs.markdown import PAGES, ROOT, blocks, name
from trainer.cli import main

README = ROOT / "README.md"
FILES = {"class Net": "my_net.py", "-> Source": "my_data.py"}
"""What begins a program that a page tells the reader to write into a file, and the file."""


QUOTES = {ROOT / "ARCHITECTURE.md"}
"""Its program is part of a file, which test_pages.py compares."""


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python") and page not in QUOTES], ids=name)
def test_python_blocks_run(page: Path) -> None:
    for block in blocks(page, "python"):
        torch.manual_seed(0)
        exec(compile(block, name(page), "exec"), {"__name__": f"snippet of {name(page)}"})


@pytest.mark.parametrize("documented", [Balancer, Window])
def test_docstrings_run(documented: type) -> None:
    """In a step of two tasks, with what the snippet takes for granted."""
    encoder, heads = nn.Linear(3, 4), [nn.Linear(4, 1), nn.Linear(4, 1)]
    x, targets = torch.randn(6, 3), torch.randn(2, 6, 1)

    def losses(outputs: list[torch.Tensor], targets: torch.Tensor) -> dict[str, Any]:
        sums = [((output - target) ** 2).sum() for output, target in zip(outputs, targets, strict=True)]
        return {"sums": sums, "counts": [len(outputs[0])] * 2}

    def model(x: torch.Tensor, balancer: Balancer | Window) -> list[torch.Tensor]:
        return [head(view) for head, view in zip(heads, balancer.split(encoder(x)), strict=True)]

    context = {
        "Balancer": lambda tasks: Balancer(2),
        "balancer": Balancer(2),
        "micro_batches": [(x[:3], targets[:, :3]), (x[3:], targets[:, 3:])],
        **{"torch": torch, "encoder": encoder, "heads": heads, "x": x, "model": model, "losses": losses},
    }
    program = snippet(documented)
    if "sums" in program:  # It computes the outputs, and leaves their losses to the reader.
        program = program.replace("sums=sums, counts=counts", "**losses(outputs, targets)")
        context["targets"] = targets
    exec(program, context)
    assert context["balancer"].alpha.sum() == pytest.approx(1)


def snippet(documented: type) -> str:
    """Return the indented block of a docstring."""
    lines = inspect.getdoc(documented).splitlines()  # type: ignore[union-attr]
    first = next(number for number, line in enumerate(lines) if line.startswith("    ") and not lines[number - 1])
    last = next(number for number in range(first, len(lines)) if not lines[number])
    return textwrap.dedent("\n".join(lines[first:last]))


@pytest.fixture
def newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with photos, their labels, and the files that the pages tell to write."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    rows, generator = ["file,kind,size"], np.random.default_rng(0)
    for number in range(60):
        bright = number % 2
        pixels = generator.integers(100 * bright, 100 * bright + 150, (70, 90, 3)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "photos" / f"{number}.jpg"), pixels)
        rows.append(f"{number}.jpg,{('dark', 'bright')[bright]},{number / 7}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    (tmp_path / "mine.yaml").write_text(blocks(README, "yaml")[0])
    for page in PAGES:
        for block in blocks(page, "python"):
            for begins, file in FILES.items():
                if begins in block:
                    (tmp_path / file).write_text(block)
    return tmp_path


@pytest.mark.processes
def test_your_images_your_network(newcomer: Path) -> None:
    """What README.md's section says to type, up to the training: a batch of the photos goes through the network."""
    for words in typed()[:3]:
        assert main(words) == 0, words


@pytest.mark.slow
@pytest.mark.processes
def test_your_network_trains(newcomer: Path) -> None:
    """All that the section says to type; the training is shorter."""
    shorter = ["train.steps=4", "train.eval_every_steps=2"]
    for words in typed():
        run(*words, *(shorter if words[0] == "train" else []))
    assert (newcomer / "runs" / "mine" / "report.html").exists()
    assert (newcomer / "runs" / "resnet" / "report.html").exists()


def typed() -> list[list[str]]:
    """Return the commands of README.md's section about one's own images."""
    section = README.read_text().partition("## Your images")[2].partition("\n## ")[0]
    found = [shlex.split(line)[2:] for line in section.splitlines() if line.startswith("$ paretrain ")]
    assert [words[0] for words in found] == ["data", "data", "check", "train", "train"]
    return found


@pytest.mark.long
def test_your_own_source(newcomer: Path) -> None:
    assert main(["data", "from", "my_data.digits", "count=30", "--out", "own"]) == 0
    assert main(["data", "check", "own"]) == 0


def run(*words: str) -> None:
    """Run a command in a process of its own, since training takes the whole process."""
    done = subprocess.run(
        [sys.executable, "-m", "trainer", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
