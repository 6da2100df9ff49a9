"""``manifest.json``: its digest, the shape it must have, and the mark of its scales inside the artifact.

The digest is there for accidents: a flipped bit, a half-made edit, a bad copy. It is no signature: whoever alters a bundle on
purpose computes it anew, together with the checksums of the files. A bundle from somebody you do not trust proves nothing by
being whole; sign it, or its digest, with a tool of your own.
"""

import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NotRequired, TypedDict

import jax.numpy as jnp

from lowbit.core import json_text

from .inside import check_name

FORMAT = "lowbit-bundle"
FORMAT_VERSION = 2
_ZEROS = "0" * 64
_MARK = b"lowbit scales\x00\x01\x02"
"""What the mark of the scales begins with, in the bytes of an artifact."""


class Manifest(TypedDict):
    """What ``manifest.json`` says, of version `FORMAT_VERSION`. Files and digest come last, when everything is written."""

    format: str
    version: int
    name: str
    entry: str
    stablehlo: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    vectors: int
    constant_args: list[int]
    inexact_operations: list[str]
    constant_bytes: int
    allowed: list[float] | None
    conditioning: list[float] | None
    roundings: dict[str, Any] | None
    weights: list[dict[str, Any]]
    sites: list[dict[str, Any]]
    forms: dict[str, list[str]]
    runtimes: dict[str, Any]
    targets: dict[str, Any]
    plan: dict[str, Any]
    tools: dict[str, str | None]
    files: NotRequired[dict[str, Any]]
    rounding: NotRequired[str]
    grids: NotRequired[dict[str, Any]]
    float_operations: NotRequired[dict[str, list[str]]]
    digest: NotRequired[str]


def encoded(manifest: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Returns a manifest with its digest, and its file: JSON text whose sha256, with its own digits zeros, is the digest."""
    plain = {**manifest, "digest": _ZEROS}
    text = (json.dumps(plain, indent=1, allow_nan=False) + "\n").encode()
    digest = hashlib.sha256(text).hexdigest()
    return {**plain, "digest": digest}, text.replace(_line(_ZEROS), _line(digest))


def _line(digest: str) -> bytes:
    return f'\n "digest": "{digest}"'.encode()


def decoded(content: bytes) -> dict[str, Any]:
    """Returns the manifest in a file's bytes.

    Raises:
        ValueError: if it is not lowbit's, of another version, was altered, or says something that no manifest says.
    """
    try:
        manifest = json_text.parse_json(content)
    except ValueError as error:
        raise ValueError(f"its manifest.json is not lowbit's: {error}") from None
    try:
        is_ours = manifest["format"] == FORMAT and type(manifest["version"]) is int
    except (KeyError, TypeError):
        is_ours = False
    if not is_ours:
        raise ValueError("its manifest.json is not lowbit's")
    if manifest["version"] > FORMAT_VERSION:
        raise ValueError(f"it is of version {manifest['version']}; this lowbit reads {FORMAT_VERSION}: update it")
    if manifest["version"] < FORMAT_VERSION:
        raise ValueError(f"it is of version {manifest['version']}, whose manifest has no digest: export again")
    digest = str(manifest.get("digest"))
    line = _line(digest)
    if content.count(line) != 1 or hashlib.sha256(content.replace(line, _line(_ZEROS))).hexdigest() != digest:
        raise ValueError("its manifest.json was altered after the export: its digest does not hold; export again")
    _check(manifest)
    return manifest


def scales_mark(manifest: Mapping[str, Any]) -> bytes:
    """Returns the bytes that an artifact carries to say which scales it was exported with.

    A full-integer module computes with multipliers: the scales of its inputs, outputs and weights stand in the manifest
    alone, and those who use them must be able to tell that they belong to it.
    """
    named = [manifest.get(name) for name in ("inputs", "outputs", "sites", "grids", "rounding")]
    text = json.dumps(named, sort_keys=True, separators=(",", ":"))
    return _MARK + hashlib.sha256(text.encode()).digest()


_Check = Callable[[Any], bool]


def _is_text(x: Any) -> bool:
    return isinstance(x, str)


def _is_count(x: Any) -> bool:
    return type(x) is int and 0 <= x < 1 << 60


def _is_number(x: Any) -> bool:
    return type(x) in (int, float) and math.isfinite(x)


def _is_amount(x: Any) -> bool:
    return _is_number(x) and x >= 0


def _is_scale(x: Any) -> bool:
    return _is_number(x) and 2.0**-126 <= abs(x) < 2.0**128


def _is_flag(x: Any) -> bool:
    return type(x) is bool


def _is_dimension(x: Any) -> bool:
    return _is_count(x) or (isinstance(x, str) and x.isidentifier())


@functools.cache
def _is_dtype_name(word: str) -> bool:
    try:
        return str(jnp.dtype(word)) == word
    except TypeError:
        return False


def _is_dtype(x: Any) -> bool:
    return isinstance(x, str) and _is_dtype_name(x)


def _list(check: _Check) -> _Check:
    return lambda x: isinstance(x, list) and all(check(each) for each in x)


def _map(check: _Check) -> _Check:
    return lambda x: isinstance(x, dict) and all(check(each) for each in x.values())


def _or_none(check: _Check) -> _Check:
    return lambda x: x is None or check(x)


def _entry(needed: Mapping[str, _Check], more: Mapping[str, _Check] | None = None) -> _Check:
    """Of an object that has what is needed; further keys of ours must hold as well."""
    return lambda x: (
        isinstance(x, dict)
        and all(key in x and check(x[key]) for key, check in needed.items())
        and all(key not in x or check(x[key]) for key, check in (more or {}).items())
    )


_PORTS = _list(
    _entry(
        {"name": _is_text, "shape": _list(_is_dimension), "dtype": _is_dtype},
        {"scale": _is_scale, "zero_point": lambda x: type(x) is int and abs(x) < 1 << 16},
    )
)
_SCALES = _or_none(lambda x: _is_text(x) or _is_number(x) or _list(_is_number)(x) or _map(_is_number)(x))
_GRID = {"spec": _is_text, "bits": _is_count, "scale": _SCALES, "zero": _SCALES}
_NEEDED: dict[str, _Check] = {
    "name": lambda x: isinstance(x, str) and x.isidentifier() and x.isascii(),
    "entry": lambda x: x == "main",
    "stablehlo": lambda x: isinstance(x, str) and re.fullmatch(r"\d+\.\d+\.\d+", x) is not None,
    "inputs": _PORTS,
    "outputs": _PORTS,
    "vectors": lambda x: type(x) is int and 1 <= x < 1 << 20,
    "constant_args": _list(_is_count),
    "inexact_operations": _list(_is_text),
    "constant_bytes": _is_count,
    "allowed": _or_none(_list(_is_amount)),
    "conditioning": _or_none(_list(_is_amount)),
    "roundings": _or_none(_entry({"against": _is_text, "largest": _list(_is_amount), "rms": _list(_is_amount)})),
    "weights": _list(
        _entry(
            {
                "path": _is_text,
                "shape": _list(_is_count),
                "spec": _is_text,
                "bits": _is_count,
                "stored_bits": _is_count,
                "has_zero_points": _is_flag,
                "bits_per_weight": _is_amount,
            }
        )
    ),
    "sites": _list(_entry({"path": _is_text, "role": _is_text}, _GRID)),
    "forms": _map(_list(_is_text)),
    "targets": lambda x: isinstance(x, dict),
    "plan": _entry({"rows": _list(_entry({"path": _is_text}, {"macs": _is_count}))}),
    "tools": _map(_or_none(_is_text)),
    "files": _map(
        _entry(
            {
                "bytes": _is_count,
                "sha256": lambda x: isinstance(x, str) and re.fullmatch("[0-9a-f]{64}", x) is not None,
            },
            {"deflated": _is_count},
        )
    ),
}
_SOMETIMES: dict[str, _Check] = {
    "rounding": _is_text,
    "grids": _map(_entry({}, _GRID)),
    "float_operations": _map(_list(_is_text)),
    "runtimes": _map(_map(_map(_is_text))),
}


def _check(manifest: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the key, where a manifest says what none says: its digest may be right all the same."""
    for key, check in (_NEEDED | _SOMETIMES).items():
        if key not in manifest and key in _NEEDED:
            raise ValueError(f"its manifest.json lacks {key!r}")
        if key in manifest and not check(manifest[key]):
            raise ValueError(f"its manifest.json has a {key!r} that lowbit does not write: {_short(manifest[key])}")
    for name in (*manifest["files"], *(file for files in manifest["forms"].values() for file in files)):
        check_name(name)
    listed = set(manifest["files"])
    if lost := [file for files in manifest["forms"].values() for file in files if file not in listed]:
        raise ValueError(f"its manifest.json has no checksum of {lost[0]!r}")
    count = len(manifest["outputs"])
    for key in ("allowed", "conditioning"):
        if manifest[key] is not None and len(manifest[key]) != count:
            raise ValueError(f"its manifest.json has {len(manifest[key])} limits in {key!r} for {count} outputs")
    if (other := manifest["roundings"]) is not None and {len(other["largest"]), len(other["rms"])} != {count}:
        raise ValueError(f"its manifest.json has other 'roundings' than for {count} outputs")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
