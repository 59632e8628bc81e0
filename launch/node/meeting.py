"""The port at which the hosts of a run meet, agreed on through the run's folder.

Each start takes the next port, since the hosts do not all end the last start at the same moment. But a host that was
rebooted counts its starts from zero again. So node 0 alone decides: it writes the port of its start beside a word that
is new each time, and the other nodes wait for a new word, and for the port to be open.
"""

import json
import secrets
import socket
import time
from pathlib import Path

from trainer.errors import UserError
from trainer.files import read_json, replace

MEETING = ".meeting.json"
"""The file in the run's folder."""
TURN_SECONDS = 0.5


class Meeting:
    """The meetings of the launcher of one host with those of the others, one for each start.

    Args:
        run_dir: the run's folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / MEETING
        self._last_word = ""

    def port(self, node: int, host: str, port: int, seconds: float) -> int:
        """Return the port of this start. On other nodes than 0, wait until node 0 listens there.

        Args:
            node: the number of this host.
            host: name or address of node 0.
            port: that node 0 takes; the other nodes take it where they see no file of node 0, as in a folder that is
                not shared, which the processes refuse with a sentence once they have met.
            seconds: how long to wait.

        Raises:
            UserError: node 0 cannot write the run's folder.
            ConnectionError: node 0 does not listen in time.
        """
        if node == 0:
            replace(self._path, json.dumps({"port": port, "word": secrets.token_hex(8)}).encode())
            return port
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = self._invitation()
            if found is None and _is_open(host, port):
                return port
            if found and found[1] != self._last_word and _is_open(host, found[0]):
                self._last_word = found[1]
                return found[0]
            time.sleep(TURN_SECONDS)
        raise ConnectionError(f"node 0 has not listened within {seconds:g} s")

    def _invitation(self) -> tuple[int, str] | None:
        """Return what node 0 has written: port and word; None where there is nothing that can be read."""
        try:
            found = read_json(self._path)
        except (FileNotFoundError, UserError):
            return None
        port, word = (found.get("port"), found.get("word")) if isinstance(found, dict) else (None, None)
        return (port, word) if isinstance(port, int) and isinstance(word, str) else None


def _is_open(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=TURN_SECONDS).close()
    except (OSError, OverflowError):
        return False
    return True
