"""Error messages for data files that cannot be read: whether the data is at fault, and what to type."""

import errno
from pathlib import Path

from trainer.data.format.origin import origin
from trainer.errors import UserError

_HINTS = {
    errno.EACCES: "Ask its owner for the right to read it: chmod a+r FILE, and a+x for the folders that contain it.",
    errno.EPERM: "Ask its owner for the right to read it: chmod a+r FILE, and a+x for the folders that contain it.",
    errno.EMFILE: "This process has too many files open. Raise the limit with: ulimit -n 65536",
    errno.ENFILE: "This machine has too many files open. Close other programs.",
    errno.ENOMEM: "This machine has no memory left. Close other programs, or ask for more memory.",
}
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def remedy(folder: Path) -> str:
    """Return what to type if a data folder is damaged."""
    source = origin(folder)
    if source is not None:
        return f"It is a copy. Delete it with: rm -r {folder}\nThe next run fetches it again from {source}."
    return f"Copy {folder} again from where it was made, or delete it and run its `paretrain data ...` command again."


def differs(path: Path, expected: str, found: str) -> UserError:
    """Return the error for a file of a data folder whose SHA-256 is not the one that its manifest lists."""
    return UserError(
        f"{path}: its content is not that of manifest.json: expected sha256 {expected}, found {found}.\n"
        f"{remedy(path.parent)}"
    )


def unreadable(path: Path, error: OSError) -> UserError:
    """Return the error for a file of a data folder that cannot be read.

    Only a missing file is a fault of the data. Permissions, memory and disks are not, so for these the message does not
    tell the user to delete anything.
    """
    fault = f"{path} cannot be read: {error.strerror or error}."
    if error.errno in _GONE:
        return UserError(f"{fault}\n{remedy(path.parent)}")
    hint = "The disk, or the connection to it, has failed. The data may be intact; see\n  dmesg | tail; ls -l FILE"
    return UserError(f"{fault}\n{_HINTS.get(error.errno or 0, hint)}".replace("FILE", str(path)))


def out_of_memory(doing: str) -> UserError:
    """Return the error for a failed allocation.

    Args:
        doing: what the memory was needed for.
    """
    return UserError(
        f"This machine has not enough memory to {doing}. The data may be intact.\n"
        "Ask for more memory, or type a smaller train.global_batch or fewer data.workers."
    )
