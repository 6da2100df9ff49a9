"""The shape of a tree as JSON, its arrays apart.

A node is the name of an array, ``null``, or an object with one key: ``{"dict": [[key, node], ...]}``,
``{"list": [node, ...]}``, ``{"tuple": [node, ...]}``, ``{"qtensor": {...}}`` or ``{"dropped": {...}}``.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.core.qtensor import QTensor
from lowbit.core.spec import Spec
from lowbit.formats.lookup import spec_from_text

from .trees import Dropped

Node = Any
"""What `describe` returns: JSON values."""


def describe(tree: Any, path: str, arrays: dict[str, Any]) -> Node:
    """Returns the node of ``tree`` and puts its arrays into ``arrays``, named by their path.

    Args:
        tree: nested dicts (string or integer keys), lists, tuples, None, arrays, `QTensor`, `Dropped`.
        path: of the root.
        arrays: filled in.

    Raises:
        TypeError: for anything else; the message has its path.
        ValueError: for a spec that does not read back from its text.
    """
    if tree is None:
        return None
    if isinstance(tree, QTensor):
        return {"qtensor": _describe_qtensor(tree, path, arrays)}
    if isinstance(tree, Dropped):
        return {"dropped": dataclasses.asdict(tree)}
    if isinstance(tree, Mapping):
        if bad := [key for key in tree if type(key) not in (str, int)]:
            raise TypeError(f"{path}: keys must be strings or integers to be saved, got {bad[0]!r}")
        return {"dict": [[key, describe(value, f"{path}/{key}", arrays)] for key, value in tree.items()]}
    if type(tree) in (list, tuple):
        nodes = [describe(value, f"{path}/{i}", arrays) for i, value in enumerate(tree)]
        return {type(tree).__name__: nodes}
    if isinstance(tree, jax.Array | np.ndarray | np.generic):
        return _named(tree, path, arrays)
    raise TypeError(
        f"{path} is a {type(tree).__name__}, which a checkpoint cannot hold: it takes dicts, lists, tuples and arrays"
    )


_DEEPEST = 200
"""Levels of a tree: those of a model are a dozen."""


def rebuild(node: Node, arrays: Mapping[str, Any], depth: int = 0) -> Any:
    """Returns the tree that `describe` wrote.

    Args:
        node: of the tree.
        arrays: by name.
        depth: of the node.

    Raises:
        ValueError: if the tree is deeper than any model's.
        KeyError: if an array is missing.
        TypeError: if a node is none of those that `describe` writes.
    """
    if depth > _DEEPEST:
        raise ValueError(f"a saved tree may have {_DEEPEST} levels")
    if node is None:
        return None
    if isinstance(node, str):
        return arrays[node]
    if not isinstance(node, dict) or len(node) != 1:
        raise TypeError(f"not a node of a saved tree: {node!r:.80}")
    ((kind, content),) = node.items()
    if kind not in _READERS:
        raise TypeError(f"a saved tree has no {kind!r} nodes")
    return _READERS[kind](content, arrays, depth + 1)


def _named(array: Any, path: str, arrays: dict[str, Any]) -> str:
    name, number = path, 1
    while name in arrays:  # {"a/b": x, "a": {"b": y}}
        name, number = f"{path}#{number}", number + 1
    arrays[name] = array
    return name


def _describe_qtensor(q: QTensor, path: str, arrays: dict[str, Any]) -> dict[str, Node]:
    if _spec(q.spec.text) != q.spec:
        raise ValueError(f"{path}: the spec {q.spec.text} does not read back; save formats of lowbit.formats only")
    return {
        "codes": _named(q.codes, f"{path}/codes", arrays),
        "scale": describe(q.scale, f"{path}/scale", arrays),
        "zero": describe(q.zero, f"{path}/zero", arrays),
        "spec": q.spec.text,
        "dtype": q.dtype,
        "groups": q.groups,
        "stage": q.stage,
        "packed_axis": q.packed_axis,
    }


def _spec(text: str) -> Spec:
    return spec_from_text(text, is_weight="/dynamic" not in text)


def _axes(pairs: Any) -> tuple[tuple[int, int], ...]:
    """Pairs of an axis and a number, as they are: a text or a fraction is none."""
    axes = tuple((axis, number) for axis, number in pairs)
    if not all(type(x) is int for pair in axes for x in pair):
        raise TypeError(f"axes and lengths must be integers, got {pairs!r:.80}")
    return axes


def _rebuild_dict(content: Any, arrays: Mapping[str, Any], depth: int) -> dict[Any, Any]:
    entries = {}
    for key, value in content:
        if type(key) not in (str, int) or key in entries:
            raise TypeError(f"keys of a saved tree are distinct texts and integers, got {key!r:.80}")
        entries[key] = rebuild(value, arrays, depth)
    return entries


def _rebuild_dropped(content: Any, arrays: Mapping[str, Any], depth: int) -> Dropped:
    del arrays, depth
    shape, dtype = tuple(content["shape"]), content["dtype"]
    if not all(type(n) is int and n >= 0 for n in shape) or jnp.dtype(dtype).name != dtype:
        raise TypeError(f"a dropped parameter has a shape and a dtype, got {shape!r:.80} and {dtype!r:.80}")
    return Dropped(shape, dtype)


def _rebuild_qtensor(data: Mapping[str, Node], arrays: Mapping[str, Any], depth: int) -> QTensor:
    if data["stage"] not in ("levels", "codes", "packed") or (data["stage"] == "packed") != (
        data["packed_axis"] is not None
    ):
        raise TypeError(f"a quantized tensor of stage {data['stage']!r} with packed axis {data['packed_axis']}")
    return QTensor(
        codes=arrays[data["codes"]],
        scale=rebuild(data["scale"], arrays, depth),
        zero=rebuild(data["zero"], arrays, depth),
        spec=_spec(data["spec"]),
        dtype=data["dtype"],
        groups=_axes(data["groups"]),
        stage=data["stage"],
        packed_axis=None if data["packed_axis"] is None else _axes([data["packed_axis"]])[0],
    )


_READERS: dict[str, Callable[[Any, Mapping[str, Any], int], Any]] = {
    "dict": _rebuild_dict,
    "list": lambda content, arrays, depth: [rebuild(value, arrays, depth) for value in content],
    "tuple": lambda content, arrays, depth: tuple(rebuild(value, arrays, depth) for value in content),
    "dropped": _rebuild_dropped,
    "qtensor": _rebuild_qtensor,
}
