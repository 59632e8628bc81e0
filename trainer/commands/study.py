"""`paretrain study`: run one of the studies anew and write its page."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from trainer.errors import UserError, did_you_mean
from trainer.files import make_folder
from trainer.terminal import Terminal


def run_study(name: str, out: Path | None, quick: bool, processes: int | None) -> Path:
    """Run the study `name`, and return the page that it has written.

    Args:
        name: of a study.
        out: folder of the page, its figures and its numbers; None: study-NAME in the current folder.
        quick: run smaller problems and fewer replicates.
        processes: None: as many as there are cores.

    Raises:
        UserError: there is no such study, or the folder cannot be written.
    """
    if name not in STUDIES:
        raise UserError(f"no study {name!r}{did_you_mean(name, STUDIES)} The studies: {', '.join(STUDIES)}.")
    out = out or Path(f"study-{name}")
    make_folder(out)
    try:
        page = STUDIES[name](out, quick, processes or os.cpu_count() or 1)
    except OSError as error:
        raise UserError(f"the study's folder {out} cannot be written: {error}") from error
    Terminal(soft_wrap=True).print(f"page: {page}")
    return page


def _double_descent(out: Path, quick: bool, processes: int) -> Path:
    from studies.double_descent import run  # matplotlib takes a second to import

    return run(out, quick, processes)


STUDIES: Mapping[str, Callable[[Path, bool, int], Path]] = {"double-descent": _double_descent}
"""Name -> `run(out, quick, processes)`, which returns the page."""
