"""Values as one file: numbers, strings, tensors, and lists, tuples and dictionaries of them. Nothing is pickled.

The file is a safetensors file of the tensors. Its metadata hold the rest as JSON, where {"tensor": NAME} means a
tensor, {"tuple": [...]} a tuple and {"dict": [[key, value], ...]} a dictionary, whose keys need not be strings.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from trainer.errors import UserError
from trainer.files import open_regular, parse_json

VALUE = "value"


def to_bytes(value: Any) -> bytes:
    """Return the content of a file that holds a value.

    Raises:
        ValueError: the value holds something else; the message names where and what.
    """
    tensors: dict[str, Tensor] = {}
    try:
        text = json.dumps(_encode(value, tensors))
    except RecursionError:
        raise ValueError(" is nested too deeply") from None
    return save(tensors, {VALUE: text})


def read_values(path: Path) -> Any:
    """Return the value in a file that `to_bytes` made.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is another kind of file.
    """
    open_regular(path).close()
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(VALUE, "")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # It is not a dict.
        return _decode(parse_json(text, str(path)), tensors)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f"{path} holds no plain values: {error}") from None


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (Tensor, torch.nn.Parameter):
        return {"tensor": _add(value.detach(), tensors)}
    if type(value) is list:
        return [_encode(item, tensors) for item in value]
    if type(value) is tuple:
        return {"tuple": [_encode(item, tensors) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[_encode(key, tensors), _encode_item(key, item, tensors)] for key, item in value.items()]}
    kind = type(value)
    raise ValueError(f" is a {kind.__module__}.{kind.__qualname__}")


def _encode_item(key: Any, item: Any, tensors: dict[str, Tensor]) -> Any:
    try:
        return _encode(item, tensors)
    except ValueError as error:
        raise ValueError(f"['{key}']{error}") from None


def _add(tensor: Tensor, tensors: dict[str, Tensor]) -> str:
    name = str(len(tensors))
    try:
        tensors[name] = tensor.cpu().clone(memory_format=torch.contiguous_format)
        save({name: tensors[name]})
    except Exception as error:  # A sparse tensor or an unknown dtype: each fails in its own way.
        raise ValueError(f" is a tensor of {tensor.dtype}, {tensor.layout}") from error
    return name


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"tensor": str(name)} if len(value) == 1 and name in tensors:
            return tensors[name]
        case {"tuple": list(items)} if len(value) == 1:
            return tuple(_decode(item, tensors) for item in items)
        case {"dict": list(pairs)} if len(value) == 1 and all(_is_pair(pair) for pair in pairs):
            return {_decode_key(key): _decode(item, tensors) for key, item in pairs}
    raise ValueError(f"expected a tensor, tuple or dict, found {str(value)[:80]}")


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def _decode_key(key: Any) -> Any:
    if isinstance(key, list) or (isinstance(key, dict) and list(key) != ["tuple"]):
        raise ValueError(f"{str(key)[:80]} cannot be the key of a dictionary")
    found = _decode(key, {})
    hash(found)  # A tuple may hold a list.
    return found
