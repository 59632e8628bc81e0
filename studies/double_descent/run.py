import time
from pathlib import Path

from studies.double_descent.experiments import FULL, QUICK, panels
from studies.double_descent.figures import draw_figures
from studies.double_descent.measured import measure
from studies.double_descent.words import build_page, numbers


def run(out: Path, quick: bool, processes: int) -> Path:
    """Simulate coupled tasks, draw them over theory, and write a page, its figures and their numbers."""
    start = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    scale = QUICK if quick else FULL
    series = panels(scale)
    results = measure(series, scale, processes)
    figures = draw_figures(series, results, out)
    (out / "numbers.csv").write_text(numbers(series, results), encoding="utf-8")
    page = out / "page.html"
    page.write_text(build_page(figures, results, scale, time.monotonic() - start), encoding="utf-8")
    return page
