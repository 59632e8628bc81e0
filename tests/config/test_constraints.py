"""constraints.txt has a version of every package that the image installs: a build of next year is that of today."""

import re
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.command import ROOT

EXTRAS = re.findall(r"'\.\[([\w,]+)\]'", (ROOT / "Dockerfile").read_text())[0].split(",")
OF_TORCH = re.compile(r"nvidia-|triton|cuda-")
"""Packages of a GPU build, which torch asks for by their exact versions."""


def needed(name: str, extras: set[str], found: set[str]) -> set[str]:
    """The names of all packages that one needs, itself among them; what is not installed here needs nothing."""
    if (key := f"{canonicalize_name(name)}[{','.join(sorted(extras))}]") in found:
        return found
    found.add(key)
    try:
        requirements = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return found
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            needed(requirement.name, requirement.extras, found)
    return found


def test_every_package_of_the_image_has_its_version() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()[1:]
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines}
    assert len(pinned) == len(lines), "a package stands there twice"
    names = {key.partition("[")[0] for key in needed("paretrain", set(EXTRAS), set())} - {"paretrain"}
    assert {name for name in names if not OF_TORCH.match(name)} - pinned == set()
