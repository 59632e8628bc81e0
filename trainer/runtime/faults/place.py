"""Where a process is, or was when it failed: the innermost line of the run's own code, and the collective it waits in.

Where it is an installed library's line, the nearest caller that is not one counts.
"""

import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

OURS = {"paretrain", "trainer", "models", "launch", "__main__"}
OF_TORCH = {"torch", "deepspeed", "accelerate"}
COLLECTIVES = "torch.distributed.distributed_c10d"

_LOST_PEER = re.compile(
    r"connection (closed|reset|refused)|timed? ?out|broken pipe|no route to host|remote process|peer|gloo|nccl",
    re.IGNORECASE,
)
"""How torch's back ends word the loss of another process; they have no exception type for it."""


def raised_at(error: BaseException) -> str:
    """Return where an error was raised, such as "all_reduce at trainer/runtime/collectives.py:76 in sum"."""
    return _place(traceback.walk_tb(error.__traceback__))


def running_at(thread: int) -> str:
    """Return where a running thread of this process is, in the form of `raised_at`."""
    return _place(reversed(list(traceback.walk_stack(sys._current_frames()[thread]))))


def tells_of_a_lost_peer(error: BaseException) -> bool:
    """Return whether torch raised this because another process went away or did not answer in time."""
    if not isinstance(error, RuntimeError) or not _LOST_PEER.search(str(error)):
        return False
    innermost = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    return _package(innermost) in OF_TORCH


def reason(error: BaseException) -> str:
    """Return an error's message in one sentence, without the C++ source line that torch puts before it."""
    text = str(error).strip()
    last_line = text.splitlines()[-1].strip() if text else type(error).__name__
    return re.sub(r"^\[\S+\] ", "", last_line).split(". ")[0]


def _place(frames: Iterable[tuple[FrameType, int]]) -> str:
    """Return the place of the innermost frame that is the run's own; `frames` come outermost first."""
    line, collective = "", ""
    for frame, number in frames:
        name = frame.f_code.co_name
        if _is_of_the_run(frame):
            line, collective = f"at {_relative(frame.f_code.co_filename)}:{number} in {name}", ""
        elif frame.f_globals.get("__name__") == COLLECTIVES and not collective and not name.startswith("_"):
            collective = name
    return f"{collective} {line}".strip()


def _is_of_the_run(frame: FrameType) -> bool:
    """Return whether a frame is of this project or of a module of the user's, not of an installed library."""
    package = _package(frame)
    is_installed = {"site-packages", "dist-packages"} & set(Path(frame.f_code.co_filename).parts)
    return package in OURS or not (is_installed or package in sys.stdlib_module_names)


def _package(frame: FrameType) -> str:
    name: str = frame.f_globals.get("__name__", "")
    return name.partition(".")[0]


def _relative(file: str) -> str:
    here = Path.cwd()
    return str(Path(file).relative_to(here)) if Path(file).is_relative_to(here) else file
