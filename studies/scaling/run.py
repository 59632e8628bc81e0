import datetime
import os
import platform
from pathlib import Path

import torch

from studies.scaling.figure import draw_costs
from studies.scaling.measure import FULL, QUICK, Missing, Row, measure
from studies.scaling.words import build_csv, build_json, build_page


def run(out: Path, quick: bool) -> Path:
    """Measure what a step costs as the number of tasks grows; write a page, its figure and its numbers."""
    out.mkdir(parents=True, exist_ok=True)
    found = measure(QUICK if quick else FULL)
    rows = [one for one in found if isinstance(one, Row)]
    missing = [one for one in found if isinstance(one, Missing)]
    setting = _setting()
    (out / "study.csv").write_text(build_csv(rows), encoding="utf-8")
    (out / "study.json").write_text(build_json(rows, missing, setting), encoding="utf-8")
    page = out / "study.html"
    figure = draw_costs(rows, out / "costs.png")
    page.write_text(build_page(rows, missing, figure, setting), encoding="utf-8")
    return page


def _setting() -> str:
    """Return the date, the machine and the version of PyTorch."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    machine = names[0] if names else platform.machine()
    return f"{datetime.date.today()}, {os.cpu_count()} cores of {machine}, PyTorch {torch.__version__}"


def _cpuinfo() -> list[str]:
    """Return the lines in which Linux describes the processor; no other system has them."""
    file = Path("/proc/cpuinfo")
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
