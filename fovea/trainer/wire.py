"""Values as bytes and back, without pickle: JSON for the structure, safetensors for the numbers.

Tensors, arrays, pictures, mappings with any plain keys, lists, tuples, text, numbers, booleans, None, and the records of a rollout
(`Episode` and what it holds, `Task` and `Action`). Anything else is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load, save

from fovea.types import Action, Episode, Observation, Places, Prefix, Score, Segment, Task, Turn

RECORDS = {kind.__name__: kind for kind in (Action, Episode, Observation, Places, Prefix, Score, Segment, Task, Turn)}
TREE = "tree"
MODES = ("1", "L", "RGB", "RGBA")


def pack(value: Any) -> bytes:
    """Bytes of `value`.

    Raises:
      TypeError: something in it cannot travel.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = json.dumps(_plain(value, tensors)).encode()
    # a tensor too, because a safetensors header holds at most 100 MB
    return save({**tensors, TREE: torch.frombuffer(bytearray(tree), dtype=torch.uint8)})


def unpack(data: bytes) -> Any:
    """What `pack` was given; mappings come back as dicts."""
    tensors = load(data)
    return _value(json.loads(tensors.pop(TREE).numpy().tobytes()), tensors)


def _plain(x: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """JSON in which every object has one key, its kind."""

    def keep(t: torch.Tensor) -> str:
        tensors[str(len(tensors))] = t.detach().cpu().contiguous().clone()
        return str(len(tensors) - 1)

    if x is None or isinstance(x, (bool, int, float, str)):
        return x
    if isinstance(x, np.generic):
        return x.item()
    if isinstance(x, torch.Tensor):
        return {"tensor": keep(x)}
    if isinstance(x, np.ndarray):
        return {"array": keep(torch.from_numpy(np.ascontiguousarray(x)))}
    if isinstance(x, Image.Image):
        x = x if x.mode in MODES else x.convert("RGB")
        return {"image": [x.mode, *x.size, keep(torch.frombuffer(bytearray(x.tobytes()), dtype=torch.uint8))]}
    if isinstance(x, Mapping):
        return {"map": [[_plain(k, tensors), _plain(v, tensors)] for k, v in x.items()]}
    if isinstance(x, tuple):
        return {"tuple": [_plain(v, tensors) for v in x]}
    if isinstance(x, list):
        return [_plain(v, tensors) for v in x]
    if type(x).__name__ in RECORDS:
        return {"record": [type(x).__name__, [_plain(getattr(x, f.name), tensors) for f in fields(x)]]}
    raise TypeError(
        f"a {type(x).__name__} cannot be sent to another process; expected tensors, pictures, text, numbers, and records or lists of them"
    )


def _value(x: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(x, list):
        return [_value(v, tensors) for v in x]
    if not isinstance(x, dict):
        return x
    ((kind, inside),) = x.items()
    if kind == "tensor":
        return tensors[inside]
    if kind == "array":
        return tensors[inside].numpy()
    if kind == "image":
        mode, width, height, key = inside
        return Image.frombytes(mode, (width, height), tensors[key].numpy().tobytes())
    if kind == "map":
        return {_value(k, tensors): _value(v, tensors) for k, v in inside}
    if kind == "tuple":
        return tuple(_value(v, tensors) for v in inside)
    name, values = inside
    record = RECORDS[name]
    return record(**{f.name: _value(v, tensors) for f, v in zip(fields(record), values, strict=True)})
