"""What did a dead or hung run leave? python -m launch.diagnose RUN

Reads what node_entry.sh keeps in RUN/logs of the last start: each rank's output with faulthandler's stacks, the
launchers' word on how ranks ended, and NCCL's flight records. Nothing is guessed: what left no trace is said to have
left none.
"""

import pickle
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.accelerated import LOG
from trainer.errors import UserError, run_command

TAIL_BYTES = 64 * 1024

_KILLED = re.compile(r"rank (\d+) \(process \d+\) was ended by (\w+)")
_CRASH = re.compile(r"^Fatal Python error: (.+)$", re.MULTILINE)
_PLACE = re.compile(r'^ +File "(.+)", line (\d+) in (.+)$', re.MULTILINE)
_RAISED = re.compile(r"^(?:[A-Za-z_][\w.]*(?:Error|Exception|Interrupt)|AssertionError)(?::.*)?$", re.MULTILINE)
_LINE = re.compile(r'^  File "(.+)", line (\d+), in (.+)$', re.MULTILINE)
_ERROR = re.compile(r"^paretrain: error: (.+)$", re.MULTILINE)
_LOST_PEER = "another process of this run is gone or stuck"


@dataclass(frozen=True)
class Rank:
    """What is known of one rank.

    Attributes:
        number: the rank.
        host: its machine.
        blame: how much it looks like the cause. 4: killed; 3: crashed; 2: an error of its own; 1: silent; 0: a victim.
        story: what happened, in words.
        collective: the last one that its flight record knows, with its number and state.
        sequence: that number.
    """

    number: int
    host: str
    blame: int
    story: str
    collective: str | None = None
    sequence: int | None = None


def diagnose(run_dir: Path) -> str:
    """One page: a line a rank, and which of them came first.

    Raises:
        UserError: the run has left no logs of its start.
    """
    start = _last_start(run_dir)
    nodes = sorted((folder for folder in start.iterdir() if folder.is_dir()), key=lambda folder: int(folder.name[4:]))
    ranks = _ranks(nodes)
    lines = [f"{run_dir}: the start in {start.relative_to(run_dir)}, {len(nodes)} nodes"]
    lines += [
        f"  {(folder / 'host').read_text().strip()} started no process" for folder in nodes if not _outputs(folder)
    ]
    for rank in ranks:
        collective = f"; its last collective: {rank.collective}" if rank.collective else ""
        lines.append(f"  rank {rank.number} on {rank.host}: {rank.story}{collective}")
    return "\n".join([*lines, "", answer(ranks)])


def answer(ranks: Sequence[Rank]) -> str:
    """Which rank, which host, which place."""
    behind = _behind(ranks)
    worst = max((rank.blame for rank in ranks), default=0)
    first = [rank for rank in ranks if rank.blame == worst]
    if worst >= 2:
        return "first cause: " + "; ".join(f"rank {rank.number} on {rank.host}: {rank.story}" for rank in first)
    if behind:
        return "first cause: others waited for " + "; ".join(
            f"rank {rank.number} on {rank.host}, which came no further than {rank.collective}" for rank in behind
        )
    if worst == 1 and len(first) < len(ranks):
        return (
            "first cause: probably "
            + ", ".join(f"rank {rank.number} on {rank.host}" for rank in first)
            + ": others lost it, and it left no word. It hangs, or its host or network went away. If it still runs: "
            "py-spy dump --pid PID on that host"
        )
    if worst == 1:
        return "no rank has left a word of an error: they ended well, still run, or hang all together"
    return "every rank lost another one, and none says why: the network between the hosts stopped"


def _behind(ranks: Sequence[Rank]) -> list[Rank]:
    """The ranks whose flight record ends before that of others."""
    known = [rank.sequence for rank in ranks if rank.sequence is not None]
    if not known or min(known) == max(known):
        return []
    return [rank for rank in ranks if rank.sequence == min(known)]


def _last_start(run_dir: Path) -> Path:
    hosts = sorted(run_dir.glob("logs/*/*/node*/host"), key=lambda path: path.stat().st_mtime)
    if not hosts:
        raise UserError(
            f"no logs of a start in {run_dir}/logs: only runs that launch/node_entry.sh or `paretrain submit` started "
            f"have them. What a run on one machine says stands in {run_dir}/log.txt"
        )
    return hosts[-1].parent.parent


def _outputs(node: Path) -> list[Path]:
    """The folders of this node's processes at their last attempt, in the order of local ranks."""
    attempts = sorted(node.glob("*/attempt_*"), key=lambda path: int(path.name.rpartition("_")[2]))
    return sorted(attempts[-1].glob("[0-9]*"), key=lambda path: int(path.name)) if attempts else []


def _ranks(nodes: Sequence[Path]) -> list[Rank]:
    outputs = [(node, folder) for node in nodes for folder in _outputs(node)]
    killed = dict(match for node in nodes for match in _KILLED.findall(_tail(node / LOG)))
    ranks = []
    # Nodes have as many processes each, and static rendezvous ranks them in the order of the nodes.
    per_node = max((int(folder.name) for _, folder in outputs), default=0) + 1
    for node, folder in outputs:
        number = int(node.name[4:]) * per_node + int(folder.name)
        blame, story = _story(_tail(folder / "stderr.log"), killed.get(str(number)))
        collective, sequence = _flight(node / f"flight_{number}")
        ranks.append(Rank(number, (node / "host").read_text().strip(), blame, story, collective, sequence))
    return ranks


def _story(text: str, signal: str | None) -> tuple[int, str]:
    """How a rank ended, by its own output and its launcher's word."""
    if crash := _CRASH.search(text):
        place = _PLACE.search(text, crash.end())
        where = f" at {place[1]}:{place[2]} in {place[3]}" if place else ""
        return 3, f"crashed: {crash[1]}{where}"
    if error := _ERROR.search(text):
        return (0 if _LOST_PEER in error[1] else 2), error[1]
    if raised := list(_RAISED.finditer(text)):
        places = list(_LINE.finditer(text, 0, raised[-1].start()))
        where = f" at {places[-1][1]}:{places[-1][2]} in {places[-1][3]}" if places else ""
        return 2, f"raised {raised[-1][0]}{where}"
    if signal == "SIGTERM":
        return 0, "was ended by SIGTERM, as launchers do when another rank has ended"
    if signal:
        return 4, f"was ended by {signal}" + (" (out of memory, or somebody's hand)" if signal == "SIGKILL" else "")
    return 1, "left no word of an error"


def _flight(path: Path) -> tuple[str | None, int | None]:
    if not path.exists():
        return None, None
    with path.open("rb") as stream:
        entries = _PlainUnpickler(stream).load()["entries"]
    last = max(entries, key=lambda entry: entry["collective_seq_id"], default=None)
    if last is None:
        return None, None
    frame = next(iter(last.get("frames") or []), None)
    where = f" at {frame['filename']}:{frame['line']} in {frame['name']}" if frame else ""
    sequence = last["collective_seq_id"]
    return f"{last['profiling_name']} number {sequence}, {last['state']}{where}", sequence


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dictionaries, words and numbers, which flight records are made of, and runs nothing."""

    def find_class(self, module: str, name: str) -> Any:
        raise UserError(f"a flight record asks for {module}.{name}: it is not what torch writes, and was not read")


def _tail(path: Path) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as stream:
        stream.seek(0, 2)
        stream.seek(max(0, stream.tell() - TAIL_BYTES))
        return stream.read().decode(errors="replace")


def main() -> None:
    """Read the command line."""
    if len(sys.argv) != 2:
        raise UserError("expected a run's folder: python -m launch.diagnose runs/NAME")
    print(diagnose(Path(sys.argv[1])))


if __name__ == "__main__":
    sys.exit(run_command(main))
