"""At which port the hosts of a run meet. Of real hosts: cluster/test_hosts.py."""

import socket
import threading
from pathlib import Path

import pytest

from launch.node.accelerated import HOST, KEPT_STARTS, _own_folder
from launch.node.meeting import MEETING, Meeting

HERE = "127.0.0.1"


def listening() -> tuple[socket.socket, int]:
    listener = socket.create_server((HERE, 0))
    return listener, listener.getsockname()[1]


def test_other_nodes_follow_node_0_also_after_its_reboot(tmp_path: Path) -> None:
    (first, base), (second, later) = listening(), listening()
    head, other = Meeting(tmp_path), Meeting(tmp_path)
    assert head.port(0, HERE, base, 9) == base
    assert other.port(1, HERE, base, 9) == base
    # Both start again, and node 0 is late: the word of the last start must not do.
    found: list[int] = []
    waiting = threading.Thread(target=lambda: found.append(other.port(1, HERE, later, 20)))
    waiting.start()
    rebooted = Meeting(tmp_path)
    assert rebooted.port(0, HERE, base, 9) == base
    waiting.join()
    assert found == [base]
    assert rebooted.port(0, HERE, later, 9) == later
    assert other.port(1, HERE, base, 9) == later
    with pytest.raises(ConnectionError, match="node 0 has not listened"):
        other.port(1, HERE, later, 0.1)
    first.close()
    second.close()


@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"port": "x", "word": 3}', b"\xff"])
def test_without_a_readable_file_the_port_is_that_of_the_command(tmp_path: Path, content: bytes | None) -> None:
    listener, port = listening()
    if content is not None:
        (tmp_path / MEETING).write_bytes(content)
    assert Meeting(tmp_path).port(1, HERE, port, 9) == port
    listener.close()
    with pytest.raises(ConnectionError):
        Meeting(tmp_path).port(1, HERE, port, 0.1)


def test_the_last_starts_keep_their_logs(tmp_path: Path) -> None:
    for start in range(KEPT_STARTS + 3):
        for module in ("trainer.train", "launch.node.preflight"):
            folder = tmp_path / f"{start % 3}.{start}" / module / "node0" / f"2026-01-01T00:00:{start:02}"
            folder.mkdir(parents=True)
            (folder / HOST).write_text("alpha\n")
    (tmp_path / "0.0" / "trainer.train" / "node1" / "mine").mkdir(parents=True)
    new = _own_folder(tmp_path / "9.0" / "trainer.train" / "node0")
    kept = sorted(path.parent.name for path in tmp_path.glob(f"*/trainer.train/node0/*/{HOST}"))
    assert len(kept) == KEPT_STARTS
    assert kept[-1] == new.name
    assert kept[0] == "2026-01-01T00:00:04"
    assert len(list(tmp_path.glob("*/launch.node.preflight/node0/*"))) == KEPT_STARTS + 3, "of another module"
    assert (tmp_path / "0.0" / "trainer.train" / "node1" / "mine").is_dir(), "of another node, and none of ours"
    assert not (tmp_path / "1.1" / "trainer.train").exists(), "empty folders go too"
