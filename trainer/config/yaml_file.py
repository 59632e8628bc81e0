"""Read YAML 1.2 files, by the core schema only, and report each fault with its line.

PyYAML parses; the meaning of plain words is decided here, since PyYAML implements YAML 1.1, in which `010` is 8, `1:30`
is 90, `off` is false, and `5e-4` is text. Keys are always text. YAML 1.2 has neither merge keys nor dates.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from trainer.errors import UserError
from trainer.files import read_text

MAX_BYTES = 1 << 20
MAX_DEPTH = 50
MAX_VALUES = 100_000
"""Upper bound of the values in a file, including those that aliases repeat."""
MAX_INTEGER = 2**63 - 1

_PREFIX = "tag:yaml.org,2002:"
_SCALARS = {
    kind: re.compile(rf"(?:{pattern})\Z")
    for kind, pattern in {
        "null": r"~|null|Null|NULL|",
        "bool": r"true|True|TRUE|false|False|FALSE",
        "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
        "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    }.items()
}
"""The plain words that are not text, by chapter 10.3.2 of YAML 1.2.2. The first match counts."""


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is not a regular file of at most `MAX_BYTES`, or not YAML 1.2.
    """
    return parse_yaml(read_text(path, MAX_BYTES), str(path))


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML 1.2 into dictionaries with text keys, lists, text, numbers, booleans and None.

    Args:
        text: one document.
        where: begins the message of an error, such as the file's path.

    Raises:
        UserError: it is not YAML, not of the core schema, nested too deeply, or too large.
    """
    try:
        root = _Loader(text).get_single_node()
        return None if root is None else _Values().of(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        said = ", ".join(part for part in (error.context, error.problem) if part)
        raise UserError(f"{where} is not YAML: {place}{said}.") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{where} is not YAML: line {line} holds the character {error.character:#04x}.") from None


def dump_yaml(values: Any) -> str:
    """Return values as YAML that `parse_yaml` and YAML 1.1 readers both read back unchanged."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Composes nodes as SafeLoader does, with a bounded depth and the plain words of YAML 1.2."""

    yaml_implicit_resolvers = {None: [(_PREFIX + kind, pattern) for kind, pattern in _SCALARS.items()]}  # noqa: RUF012
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _fault(self.peek_event(), f"nested deeper than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes text that either version of YAML would read as something else."""


for _kind, _pattern in _SCALARS.items():
    _Dumper.add_implicit_resolver(_PREFIX + _kind, _pattern, [None])


class _Values:
    """Turns nodes into values and counts them, since a few aliases of aliases can stand for billions."""

    def __init__(self) -> None:
        self._num_values = 0
        self._inside: list[yaml.Node] = []

    def of(self, node: yaml.Node) -> Any:
        self._num_values += 1
        if self._num_values > MAX_VALUES:
            raise _fault(node, f"more than {MAX_VALUES:,} values, including those that aliases repeat")
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        if any(node is outer for outer in self._inside):
            raise _fault(node, "an alias inside the value that it stands for")
        if len(self._inside) == MAX_DEPTH:
            raise _fault(node, f"nested deeper than {MAX_DEPTH} levels, including those that aliases repeat")
        expected = "seq" if isinstance(node, yaml.SequenceNode) else "map"
        if node.tag != _PREFIX + expected:
            raise _fault(node, f"the tag {node.tag[:80]} is not allowed here")
        self._inside.append(node)
        found = [self.of(item) for item in node.value] if expected == "seq" else self._mapping(node)
        self._inside.pop()
        return found

    def _mapping(self, node: yaml.Node) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _fault(key, "a key is a list or a mapping; expected text")
            name = _text(key)
            if name == "<<":
                raise _fault(key, "merge keys (<<) are not part of YAML 1.2; write out the keys")
            if name in found:
                raise _fault(key, f"key given twice: {name}")
            found[name] = self.of(value)
        return found


def _scalar(node: yaml.ScalarNode) -> Any:
    kind, word = node.tag.removeprefix(_PREFIX), node.value
    if kind == "str":
        return _text(node)
    if kind not in _SCALARS:
        raise _fault(node, f"the tag {node.tag[:80]} is not allowed here")
    if not _SCALARS[kind].match(word):
        raise _fault(node, f"expected {kind}, found {word[:40]!r}")
    if kind == "null":
        return None
    if kind == "bool":
        return word.lower() == "true"
    if kind == "float":
        return float(word.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return _integer(node)


def _integer(node: yaml.ScalarNode) -> int:
    word = node.value
    base = {"0o": 8, "0x": 16}.get(word[:2], 10)
    # Python raises an error of its own for decimals of thousands of digits.
    value = int(word, base) if len(word.lstrip("+-0ox")) <= 24 else MAX_INTEGER + 1
    if abs(value) > MAX_INTEGER:
        raise _fault(node, f"the integer {word[:24]}{'...' if len(word) > 24 else ''} is beyond 64 bits")
    return value


def _text(node: yaml.ScalarNode) -> str:
    word: str = node.value
    try:
        word.encode()
    except UnicodeEncodeError:
        raise _fault(node, "text with half of a surrogate pair, which is not a character") from None
    return word


def _fault(found: Any, problem: str) -> yaml.MarkedYAMLError:
    """Return the error for a node or an event."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=found.start_mark)
