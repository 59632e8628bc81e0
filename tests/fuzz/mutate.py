"""Mutations of values, text and bytes. Each is a pure function of the random generator and of what it changes."""

import copy
import struct
from collections.abc import Iterator
from random import Random
from typing import Any

Path = tuple[str | int, ...]

NUMBERS = (0, -1, 1, 2, 3, 7, 0.5, -0.0, 1e-300, 1e308, 2**31, 2**32, 2**63, 10**30, float("nan"), float("inf"))
WORDS = (
    "",
    " ",
    "no",
    "null",
    "~",
    "010",
    "1:30",
    "1e400",
    "nan",
    "../..",
    "/dev/zero",
    "/",
    ".",
    "C:\\x",
    "http://",
    "ftp://host/x",
    "file:///etc/passwd",
    "2026-02-30",
    "subprocess.getoutput",
    "builtins.exit",
)
NAMES = (
    "[red]",
    "[/x]",
    "[bold]a[/bold]",
    "<script>alert(1)</script>",
    "<b>&amp;",
    "`rm`",
    "$(id)",
    "a|b",
    "*a*",
    "a\nb",
    "a\rb",
    "a\tb",
    "\x1b[31mred",
    "\x00",
    "\u202eabc",
    "\u2028",
    "名前",
    "é" * 40,
    "a" * 300,
    "-rf",
    "%s{0}",
    "a/b",
    "..",
    "con ",
    "'\"",
)
LEAVES = (*NUMBERS, *WORDS, *NAMES, None, True, False, [], {}, [[]], {"a": {}}, "x" * 10_000)


def paths(value: Any, path: Path = ()) -> Iterator[Path]:
    """List where every value stands inside nested dictionaries and lists, itself included."""
    yield path
    for key, inner in _items(value):
        yield from paths(inner, (*path, key))


def at(value: Any, path: Path) -> Any:
    """Return what stands at a path."""
    for key in path:
        value = value[key]
    return value


def with_value(value: Any, path: Path, new: Any) -> Any:
    """Return a copy with another value at a path."""
    if not path:
        return new
    changed = copy.deepcopy(value)
    at(changed, path[:-1])[path[-1]] = new
    return changed


def tree(draw: Random, value: Any) -> tuple[Path, Any]:
    """Change one value of a nested structure. Returns where, and the changed copy."""
    path = draw.choice([path for path in paths(value) if path] or [()])
    old = at(value, path)
    action = draw.choice(("leaf", "leaf", "near", "remove", "add", "double", "wrap", "deepen"))
    if not path or action == "leaf":
        return path, with_value(value, path, draw.choice(LEAVES))
    if action == "near":
        return path, with_value(value, path, near(draw, old))
    changed = copy.deepcopy(value)
    parent, key = at(changed, path[:-1]), path[-1]
    if action == "remove":
        del parent[key]
    elif action == "add" and isinstance(parent, dict):
        parent[draw.choice(("surplus", f"{key}x", *NAMES))] = draw.choice(LEAVES)
    elif action == "double" and isinstance(parent, list):
        parent.insert(int(key), copy.deepcopy(old))
    elif action == "deepen":
        parent[key] = _nested(draw.choice((50, 400)), draw.choice((list, dict)))
    else:
        parent[key] = [old]
    return path, changed


def near(draw: Random, value: Any) -> Any:
    """Return another value of the same type, or nearly."""
    if isinstance(value, bool):
        return draw.choice((not value, int(value), str(value)))
    if isinstance(value, int):
        return draw.choice((value + 1, value - 1, -value, float(value), str(value), value * 2**33, value + 0.5))
    if isinstance(value, float):
        return draw.choice((-value, value * 2, value * 1e300, str(value), float("nan"), float("inf"), 0))
    if isinstance(value, str):
        return draw.choice((value.upper(), value[:-1], f"{value} ", f"../{value}", f"/{value}", value * 2, "0" * 64))
    if isinstance(value, list):
        return draw.choice((value[::-1], value[:-1], value * 2, tuple(value), dict.fromkeys(map(str, value))))
    if isinstance(value, dict):
        return draw.choice((list(value), dict(list(value.items())[:-1]), {}, str(value)))
    return draw.choice(LEAVES)


def content(draw: Random, old: bytes) -> tuple[str, bytes]:
    """Damage bytes as disks, networks and editors do. Returns in which way, and the damaged bytes."""
    where = draw.randrange(len(old) + 1)
    length = draw.choice((1, 2, 8, 64, 512))
    ways = {
        "flipped": old[:where] + bytes(byte ^ draw.randrange(1, 256) for byte in old[where : where + 1])
        + old[where + 1 :],
        "cut": old[:where],
        "empty": b"",
        "zeros": old[:where] + bytes(len(old[where : where + length])) + old[where + length :],
        "noise": old[:where] + draw.randbytes(len(old[where : where + length])) + old[where + length :],
        "inserted": old[:where] + draw.randbytes(length) + old[where:],
        "dropped": old[:where] + old[where + length :],
        "appended": old + draw.choice((b"\0", b"\n", b"x" * 512, old)),
        "another": draw.choice((b"{}", b"[]", b"null", b"1", b"\xff\xfe", b"[" * 100_000, b"PK\x03\x04", bytes(4096))),
        "number": old[: where - where % 4] + struct.pack("<I", draw.choice((0, 1, 2**31, 2**32 - 1)))
        + old[where - where % 4 + 4 :],
    }  # fmt: skip
    way = draw.choice(sorted(ways))
    return f"{way} at {where} of {len(old)}", ways[way]


def text(draw: Random, old: str) -> tuple[str, str]:
    """Change a line of YAML as typing mistakes, and people who mean harm, do. Returns the new line, and the text."""
    lines = old.splitlines()
    number = draw.randrange(len(lines))
    line = lines[number]
    key, colon, value = line.partition(":")
    new = draw.choice(
        (
            line.strip(),
            f" {line}",
            f"\t{line}",
            line.replace(":", "", 1),
            line.replace(": ", ":", 1),
            f"{line}\n{line}",
            f"- {line}",
            f"{key}{colon} &a [*a, *a]",
            f"{key}{colon} *nowhere",
            f"{key}{colon} !!int abc",
            f"{key}{colon} !!python/object/apply:os.system [id]",
            f"{key}{colon} !!binary {value}",
            f"{key}{colon} !!timestamp 2026-02-30",
            f"{key}{colon} {'9' * 5_000}",
            f"{key}{colon} {'[' * 3_000}",
            f"{key}{colon} {draw.choice(WORDS)}",
            f'{key}{colon} "\\x00\\uD800"',
            f"{key}{colon} {{<<: {{a: 1}}}}",
            f"{key}{colon}{value} # {value}",
            f"{key}{colon}\n---\n",
            f"{key}{colon} |\n  x\n",
            _alias_bomb(key),
            f"\ufeff{line}",
            f"\x07{line}",
            f"? {line}",
        )
    )
    return new, "\n".join([*lines[:number], new, *lines[number + 1 :]]) + "\n"


def _alias_bomb(key: str) -> str:
    levels = ["&l0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"&l{level} [{', '.join([f'*l{level - 1}'] * 9)}]" for level in range(1, 12)]
    return f"{key}: [{', '.join(levels)}]"


def _nested(depth: int, kind: type) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


def _items(value: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        yield from enumerate(value)
