"""Paths of parameters and operations, and globs over them."""

import collections
import difflib
import functools
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax


@functools.lru_cache(maxsize=4096)
def _pattern(glob: str) -> re.Pattern[str]:
    out, i = "", 0
    while i < len(glob):
        if glob.startswith("**/", i):
            out, i = out + "(?:[^/]+/)*", i + 3
        elif glob.startswith("**", i):
            out, i = out + ".*", i + 2
        elif glob[i] == "*":
            out, i = out + "[^/]*", i + 1
        elif glob[i] == "?":
            out, i = out + "[^/]", i + 1
        else:
            out, i = out + re.escape(glob[i]), i + 1
    return re.compile(out)


def is_match(glob: str, path: str) -> bool:
    """Returns whether ``glob`` matches all of ``path``: ``*`` and ``?`` within a segment, ``**`` across segments.

    Example:
        >>> is_match("**/head/*", "head/kernel"), is_match("head/*", "net/head/kernel")
        (True, False)
    """
    return _pattern(glob).fullmatch(path) is not None


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Returns the ``count`` names closest to ``name``: what a user may have meant."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.0)


def flatten(tree: Any, *, is_leaf: Callable[[Any], bool] | None = None) -> tuple[list[str], list[Any], Any]:
    """Returns paths, leaves and structure of ``tree``; a `QTensor` counts as one leaf.

    A path is the keys of the leaf, joined by ``/``: ``head/kernel``, ``layers/0/kernel``. No two leaves share one:

    * a variable of `flax.nnx`, or a box of `flax.linen` (``Partitioned``), is no key; everything else called ``value`` is;
    * a root that is ``params`` alone is no key;
    * in a key, ``%``, ``@``, ``*``, ``?`` and control characters are written as ``%`` and two hexadecimal digits, so that a path
      is a glob that matches itself alone; a key that is the empty text is ``%``;
    * only where two leaves would still be called alike (``{"a/b": x, "a": {"b": y}}``, ``{"1": x, 1: y}``), a ``/`` in their
      keys is written ``%2F``, and a key that is no text as ``%=`` and its representation.

    Args:
        tree: any pytree.
        is_leaf: what else counts as one leaf.

    Raises:
        ValueError: if a type of node gives two of its leaves the same key.

    Example:
        >>> flatten({"a/b": 1, "a": {"b": 2}, "head": {"value": 3}, "w*": 4})[0]
        ['a/b', 'a%2Fb', 'head/value', 'w%2A']
    """
    from .qtensor import QTensor

    def is_one(x: Any) -> bool:
        return isinstance(x, QTensor) or (is_leaf is not None and is_leaf(x))

    entries, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_one)
    boxed, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: is_one(x) or _is_box(x, is_one))
    assert len(boxed) == len(entries)
    return names([keys for keys, _ in boxed]), [leaf for _, leaf in entries], treedef


def names(keys: Sequence[Sequence[Any]]) -> list[str]:
    """Returns the path of every leaf of a tree from the keys that lead to it: see `flatten`.

    Raises:
        ValueError: if two leaves have the same keys.
    """
    plain = [_joined(each, is_strict=False) for each in keys]
    strict = [_joined(each, is_strict=True) for each in keys]
    counts = collections.Counter(plain)
    mixed = [s if counts[p] > 1 else p for p, s in zip(plain, strict, strict=True)]
    for matches in (mixed, strict):
        if len(set(matches)) == len(matches):
            return matches
    twice = [path for path, count in collections.Counter(strict).items() if count > 1]
    raise ValueError(f"several leaves have the path {', '.join(map(repr, twice))}: give their keys names that differ")


def leaf_path(keys: Sequence[Any]) -> str:
    """Returns what a leaf is called in a message, from its keys alone: two leaves may be called alike, unlike in `flatten`."""
    is_box = len(keys) > 1 and getattr(keys[-1], "name", None) == "value"
    return _joined(keys[:-1] if is_box else keys, is_strict=False)


def _is_box(x: Any, is_leaf: Callable[[Any], bool]) -> bool:
    """Whether a node is one of Flax's around a single array. Flax is not imported: where it is not, there are none."""
    types = tuple(
        getattr(sys.modules[module], name)
        for module, name in (("flax.nnx", "Variable"), ("flax.core.meta", "AxisMetadata"))
        if module in sys.modules
    )
    return isinstance(x, types) and len(jax.tree.leaves(x, is_leaf=is_leaf)) == 1


def _joined(keys: Sequence[Any], *, is_strict: bool) -> str:
    if not is_strict and len(keys) > 1 and getattr(keys[0], "key", None) == "params":
        keys = keys[1:]
    return "/".join(_part(key, is_strict=is_strict) for key in keys)


_ESCAPED = re.compile(r"[%@*?\x00-\x1f\x7f]")


def _part(key: Any, *, is_strict: bool) -> str:
    if is_strict and isinstance(key, jax.tree_util.DictKey) and not isinstance(key.key, str):
        return "%=" + _escaped(repr(key.key), is_strict=True)
    return _escaped(jax.tree_util.keystr((key,), simple=True), is_strict=is_strict) or "%"


def _escaped(text: str, *, is_strict: bool) -> str:
    text = _ESCAPED.sub(lambda found: f"%{ord(found[0]):02X}", text)
    return text.replace("/", "%2F") if is_strict else text


def common_prefix(paths: Sequence[str]) -> str:
    """Returns the longest run of leading segments that all ``paths`` share.

    Example:
        >>> common_prefix(["attn/query/kernel", "attn/key/kernel"])
        'attn'
    """
    if not paths:
        return ""
    split = [path.split("/") for path in paths]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "/".join(shared)


def derived_path(paths: Sequence[str]) -> str:
    """Returns the path of a weight computed from leaves of one size: what they share, the differences joined by ``+``.

    Example:
        >>> derived_path(["cell/ii/kernel", "cell/if/kernel"])
        'cell/ii+if/kernel'
    """
    if len(paths) == 1:
        return paths[0]
    split = [p.split("/") for p in paths]
    prefix = common_prefix(paths).split("/") if common_prefix(paths) else []
    rest = [s[len(prefix) :] for s in split]
    suffix: list[str] = []
    while all(len(r) > 1 for r in rest) and len({r[-1] for r in rest}) == 1:
        suffix.insert(0, rest[0][-1])
        rest = [r[:-1] for r in rest]
    middle = "+".join("/".join(r) for r in rest)
    return "/".join([*prefix, middle, *suffix])
