"""Paths of operations, and globs over them."""

import difflib
import functools
import re
from collections.abc import Iterable, Sequence
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


def leaf_path(keys: Sequence[Any]) -> str:
    """Returns the path of a pytree leaf, such as ``head/kernel``; ``/value`` and a ``params/`` root are dropped."""
    parts = [jax.tree_util.keystr((key,), simple=True) for key in keys]
    if parts and parts[-1] == "value":
        parts = parts[:-1]
    if len(parts) > 1 and parts[0] == "params":
        parts = parts[1:]
    return "/".join(parts)


def flatten(tree: Any) -> tuple[list[str], list[Any], Any]:
    """Returns paths, leaves and structure of ``tree``; a `QTensor` counts as one leaf."""
    from .qtensor import QTensor

    entries, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: isinstance(x, QTensor))
    return [leaf_path(keys) for keys, _ in entries], [leaf for _, leaf in entries], treedef


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
