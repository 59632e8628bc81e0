"""Tell what a file is by its first bytes, for messages about files that are something else."""

JPEG_START = b"\xff\xd8"
PNG_START = b"\x89PNG\r\n\x1a\n"

_KINDS = (
    (0, JPEG_START + b"\xff", "a JPEG"),
    (0, PNG_START, "a PNG"),
    (8, b"WEBP", "a WebP image"),
    (0, b"GIF8", "a GIF"),
    (0, b"BM", "a BMP image"),
    (0, b"II*\0", "a TIFF image"),
    (0, b"MM\0*", "a TIFF image"),
    (4, b"ftypheic", "a HEIC image"),
    (4, b"ftypmif1", "a HEIC image"),
    (4, b"ftypavif", "an AVIF image"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"<", "HTML, SVG or XML"),
)
"""Offset and bytes -> what has them there."""


def describe(data: bytes) -> str:
    """Return what data seems to be, with an article, or its first bytes."""
    if not data:
        return "an empty file"
    known = (what for offset, mark, what in _KINDS if data.startswith(mark, offset))
    return next(known, repr(data[:8]))
