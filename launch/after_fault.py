"""Say what a batch job whose step has failed does next: slurm/train.sbatch runs this on the node of its shell.

    python -m launch.after_fault RUN START PROCESSES_PER_NODE SAVED_BEFORE

START is the folder of the start's logs, SAVED_BEFORE the text of LATEST before it, or an empty word. It prints one
line: `requeue` where a fault has ended a start that had saved something, else `end`; and, where one node alone is the
first cause, its number, counted from 0.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from launch.diagnose.diagnosis import examined
from launch.diagnose.logs import exit_codes, last_start
from launch.diagnose.rank import Blame, Rank
from launch.node.restarts import STAYS_ENDED
from trainer.errors import UserError, run_command
from trainer.files import read_text
from trainer.runtime.checkpoints.folder import CHECKPOINTS, LATEST


def is_fault(exit_codes: Sequence[int]) -> bool:
    """Return whether a fault has ended the launchers of a start: their codes say so, and none a mistake of the user.

    Launchers that were ended by others' faults may be missing, or have the code of a signal.
    """
    return UserError.exit_code not in exit_codes and any(code not in STAYS_ENDED for code in exit_codes)


def bad_node(ranks: Sequence[Rank], processes_per_node: int) -> int | None:
    """Return the node whose processes alone were killed, crashed, or fell silent; None if there is no such node.

    An exception of Python is not taken for the node's fault, nor is silence of all ranks.
    """
    worst = max((rank.blame for rank in ranks), default=Blame.VICTIM)
    first = [rank for rank in ranks if rank.blame == worst]
    is_certain = worst in (Blame.CRASHED, Blame.KILLED) or (worst is Blame.SILENT and len(first) < len(ranks))
    nodes = {rank.number // processes_per_node for rank in first} if is_certain else set()
    return nodes.pop() if len(nodes) == 1 else None


def next_action(run_dir: Path, start: Path, processes_per_node: int, saved_before: str) -> str:
    """Return the line that this module prints.

    Raises:
        UserError: LATEST cannot be read.
    """
    if last_start(run_dir) != start or not is_fault(exit_codes(start)):
        return "end"
    _, ranks = examined(run_dir)
    node = bad_node(ranks, processes_per_node)
    return f"{'requeue' if _saved(run_dir) != saved_before else 'end'} {'' if node is None else node}".rstrip()


def _saved(run_dir: Path) -> str:
    try:
        return read_text(run_dir / CHECKPOINTS / LATEST).strip()
    except FileNotFoundError:
        return ""


def main() -> None:
    """Read the command line, and print the line."""
    run_dir, start, processes_per_node, saved_before = sys.argv[1:]
    print(next_action(Path(run_dir), Path(start), int(processes_per_node), saved_before))


if __name__ == "__main__":
    sys.exit(run_command(main))
