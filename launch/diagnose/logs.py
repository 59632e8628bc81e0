"""Read what the launchers of a run's last start kept in RUN/logs: the output of each process, and how it ended."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.diagnose.flight import last_words
from launch.diagnose.rank import Blame, Rank
from launch.diagnose.records import record_on_stderr
from launch.node.accelerated import EXIT_CODE, HOST, LOG
from trainer.errors import UserError
from trainer.files import open_regular
from trainer.runtime.faults.records import FaultRecord

TAIL_BYTES = 64 * 1024
"""How much of the end of a process's output is read."""

# What Python, torch and our launcher print.
_KILLED = re.compile(r"rank (\d+) \(process \d+\) was ended by (\w+)")
_CRASH = re.compile(r"^Fatal Python error: (.+)$", re.MULTILINE)
_PLACE = re.compile(r'^ +File "(.+)", line (\d+) in (.+)$', re.MULTILINE)
_RAISED = re.compile(r"^(?:[A-Za-z_][\w.]*(?:Error|Exception|Interrupt)|AssertionError)(?::.*)?$", re.MULTILINE)
_LINE = re.compile(r'^  File "(.+)", line (\d+), in (.+)$', re.MULTILINE)
_ERROR = re.compile(r"^paretrain: error: (.+)$", re.MULTILINE)
_WATCHDOG = re.compile(r"Watchdog caught collective operation timeout: WorkNCCL\((.+?)\) ran for")
_NODE = re.compile(r"node(\d{1,9})")
_LOCAL_RANK = re.compile(r"\d{1,9}")


@dataclass(frozen=True)
class Logs:
    """The logs of a start.

    Attributes:
        num_nodes: how many nodes took part.
        idle_hosts: those that started no process.
        ranks: every rank, as far as its output and its launcher tell.
        records: the fault records that processes printed since they could not write them to the run's folder.
    """

    num_nodes: int
    idle_hosts: Sequence[str]
    ranks: Sequence[Rank]
    records: Mapping[int, FaultRecord]


def last_start(run_dir: Path) -> Path | None:
    """Return the folder of the last start's logs; None if there are none."""
    hosts = [path for path in run_dir.glob(f"logs/*/*/node*/*/{HOST}") if _number(path.parents[1].name) is not None]
    return max(hosts, key=lambda path: path.parent.name).parents[2] if hosts else None


def exit_codes(start: Path) -> list[int]:
    """Return the exit codes of the launchers of a start; one that was killed has left none."""
    texts = [_tail(node / EXIT_CODE, unread=[]).strip() for node in _nodes(start)]
    return [int(text) for text in texts if re.fullmatch(r"\d{1,3}", text)]


def read_logs(start: Path, unread: list[str]) -> Logs:
    """Read the logs of a start; add to `unread` which of them cannot be read, and why."""
    nodes = _nodes(start)
    outputs = [(node, folder) for node in nodes for folder in _outputs(node)]
    killed = dict(match for node in nodes for match in _KILLED.findall(_tail(node / LOG, unread)))
    # All nodes have the same number of processes, and static rendezvous ranks them in the order of the nodes.
    per_node = max((int(folder.name) for _, folder in outputs), default=0) + 1
    ranks, records = [], {}
    for node, folder in outputs:
        rank = int(node.parent.name[4:]) * per_node + int(folder.name)
        stderr = folder / "stderr.log"
        text = _tail(stderr, unread)
        blame, story = _story(text, killed.get(str(rank)))
        ranks.append(Rank(rank, _host(node, unread), blame, story, *last_words(node / f"flight_{rank}", unread)))
        if record := record_on_stderr(text, str(stderr), unread):
            records[rank] = record
    idle_hosts = [_host(node, unread) for node in nodes if not _outputs(node)]
    return Logs(len(nodes), idle_hosts, ranks, records)


def _nodes(start: Path) -> list[Path]:
    """Return the folder of each node's last start, in the order of the nodes."""
    folders = [folder for folder in start.iterdir() if folder.is_dir()]
    numbered = {number: folder for folder in folders if (number := _number(folder.name)) is not None}
    starts = [[path for path in numbered[number].iterdir() if path.is_dir()] for number in sorted(numbered)]
    return [max(paths) for paths in starts if paths]


def _number(name: str) -> int | None:
    found = _NODE.fullmatch(name)
    return int(found[1]) if found else None


def _outputs(node: Path) -> list[Path]:
    """Return the folders of this node's processes, in the order of local ranks."""
    found = [path for path in node.glob("*/attempt_0/*") if _LOCAL_RANK.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name))


def _story(text: str, signal: str | None) -> tuple[Blame, str]:
    """Return how a rank ended, by its own output and its launcher's line."""
    if late := _WATCHDOG.search(text):
        return Blame.VICTIM, f"NCCL gave up waiting for other ranks: {late[1]}"
    if crash := _CRASH.search(text):
        place = _PLACE.search(text, crash.end())
        where = f" at {place[1]}:{place[2]} in {place[3]}" if place else ""
        return Blame.CRASHED, f"crashed: {crash[1]}{where}"
    if error := _ERROR.search(text):
        return Blame.FAILED, error[1]
    if raised := list(_RAISED.finditer(text)):
        places = list(_LINE.finditer(text, 0, raised[-1].start()))
        where = f" at {places[-1][1]}:{places[-1][2]} in {places[-1][3]}" if places else ""
        return Blame.FAILED, f"raised {raised[-1][0]}{where}"
    if signal == "SIGTERM":
        return Blame.VICTIM, "was ended by SIGTERM, as launchers do when another rank has ended"
    if signal:
        somebody = " (the host ran out of memory, or a user killed it)" if signal == "SIGKILL" else ""
        return Blame.KILLED, f"was ended by {signal}{somebody}"
    return Blame.SILENT, "left no error message"


def _tail(path: Path, unread: list[str]) -> str:
    """Return the end of a text file; an empty text if there is none."""
    try:
        with open_regular(path) as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - TAIL_BYTES))
            return stream.read(TAIL_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return ""
    except UserError as error:
        unread.append(str(error))
        return ""
    except OSError as error:
        unread.append(f"{path} cannot be read: {error.strerror}.")
        return ""


def _host(node: Path, unread: list[str]) -> str:
    return _tail(node / HOST, unread).strip() or f"the host of {node.parent.name}"
