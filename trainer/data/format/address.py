"""Check the addresses of remote data."""

import re
from urllib.parse import urlsplit

from trainer.errors import UserError
from trainer.plain import cut_line

SCHEMES = ("http", "https", "s3")


def is_url(path: str) -> bool:
    """Return whether a data path is an address rather than a folder on this machine.

    Raises:
        UserError: the scheme is not supported, or the address is malformed.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", path)
    if scheme is None:
        return False
    if scheme[1] not in SCHEMES or not path.startswith(f"{scheme[1]}://"):
        raise UserError(
            f"data.path={cut_line(path)}: expected a folder, or an address that starts with http://, https:// or "
            f"s3://; found '{scheme[1]}:'.\n"
            "No other scheme is supported. A folder with a colon in its name is typed as ./NAME."
        )
    fault = address_fault(path) or ("it has '?' or '#'" if "?" in path or "#" in path else None)
    if fault:
        raise UserError(
            f"data.path={cut_line(path)}: expected the address of a data folder, such as https://HOST/FOLDER; {fault}."
        )
    return True


def address_fault(url: str) -> str | None:
    """Return what makes an address malformed, or None. A query is allowed: servers redirect to such addresses."""
    if not url.isprintable():
        return "it has a control character"
    is_s3 = url.startswith("s3:")
    if " " in url and not is_s3:  # names of S3 objects may contain spaces and are not percent-encoded
        return "it has a space, which is typed as %20"
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if not host or re.search(r"\s", host):
            return "it names no bucket" if is_s3 else "it names no host"
        if is_s3:
            return None
        if "@" in parts.netloc:
            return "user names and passwords in an address are not supported"
        if parts.port == 0:
            return "its port is 0"
        host.encode("idna")  # as the resolver does
    except UnicodeError:
        return "its host has an empty part or one of more than 63 characters"
    except ValueError as error:  # a port beyond 65535, or an unmatched bracket
        return f"it is malformed: {error}"
    return None
