"""Read the names of a split's samples, such as the files of its images."""

import hashlib
from pathlib import Path

from trainer.data.format.faults import differs, remedy, unreadable
from trainer.data.format.manifest import Manifest
from trainer.errors import UserError
from trainer.files import parse_json, read_bytes


def load_names(folder: Path, manifest: Manifest, split: str) -> list[str] | None:
    """Read the names of a split's samples and compare the file with the manifest; return None if they have no names.

    Raises:
        UserError: the file is missing, differs from the manifest, or does not hold a name for each sample.
    """
    spec = manifest.split(split).names
    if spec is None:
        return None
    path = folder / spec.file
    try:
        content = read_bytes(path, spec.bytes)
    except OSError as error:
        raise unreadable(path, error) from None
    found = hashlib.sha256(content).hexdigest()
    if found != spec.sha256:
        raise differs(path, spec.sha256, found)
    names, count = parse_json(content, str(path)), manifest.num_samples(split)
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: expected a list with the names of {count:,} samples.\n{remedy(folder)}")
    return names
