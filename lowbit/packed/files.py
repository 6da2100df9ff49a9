"""`save` and `load`: one safetensors file that holds a packed model. No pickle, no code.

The file, little-endian, as safetensors has it::

    8 bytes   length of the header
    header    JSON: {"__metadata__": {"lowbit": CARD}, NAME: {"dtype", "shape", "data_offsets"}, ...}
    data      the tensors' bytes, widest dtype first, without gaps

``CARD`` is JSON text: ``format`` ("lowbit"), ``version``, ``writer`` (the lowbit that wrote it), ``sha256``, ``plan`` (see `lowbit.plan.serial`), ``tree``
(see `lowbit.packed.structure`), ``described``, the sha256 of all that is not data (plan, tree, names, dtypes and shapes, and
that there is no fingerprint where there is none), and, where the parameters carry it, the ``fingerprint`` of the plan. Packed
codes are ``U8`` tensors, several codes per byte: a 4-bit weight takes half a byte. ``sha256`` is that of the whole file with
its own 64 digits written as zeros, so every byte counts. The same model gives the same bytes.
"""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from jax.core import Tracer

from lowbit.core import atomic, json_text
from lowbit.plan import serial
from lowbit.plan.rows import Plan

from . import structure, valid
from .belongs import check_belongs, checked, difference_of
from .trees import QParams

FORMAT = "lowbit"
VERSION = 1
_ZEROS = "0" * 64
_DTYPES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32", "int32": "I32",
    "uint64": "U64", "int64": "I64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0", "complex64": "C64",
}  # fmt: skip
_NAMES = {code: name for name, code in _DTYPES.items()}


def save(path: str | os.PathLike[str], plan: Plan, qparams: QParams) -> int:
    """Writes a packed model to one file, whole or not at all, and returns its size in bytes.

    The size is that of the arrays (`lowbit.nbytes`) plus a JSON header of a few hundred bytes per tensor. Quantizers
    are not written: the model read back executes and exports; to train, bind again.

    Args:
        path: the file; an existing one is replaced only once the new one is complete on disk.
        plan: from `lowbit.bind`.
        qparams: from `lowbit.pack`.

    Raises:
        TypeError: for other types, or a tree that a file cannot hold (its path is named).
        ValueError: for parameters of another plan, a scale that is NaN, infinite or smaller than 2**-126, or a spec that
            does not read back: a number format of your own lives in your code only.

    Example:
        >>> import tempfile, jax, lowbit as lb
        >>> fn, params, x = lambda p, x: x @ p["w"], {"w": jnp.ones((64, 32))}, jnp.ones((2, 64))
        >>> plan = lb.bind(fn, {"**": "w4"}, params, x)
        >>> qparams = lb.pack(plan, params, lb.init(fn, plan, params, x))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = lb.save(f"{folder}/model.lowbit", plan, qparams)
        ...     plan, again = lb.load(f"{folder}/model.lowbit")
        >>> lb.nbytes(qparams), again.params["w"].spec.text  # 64 x 32 x 4 bits, and 32 scales
        (1152, 'int4/channel/sym')
    """
    target = _path(path)
    if not isinstance(plan, Plan):
        raise TypeError(f"save takes (path, plan, qparams): plan must be a Plan, got {type(plan).__name__}")
    if not isinstance(qparams, QParams):
        raise TypeError(f"qparams must be packed parameters from lowbit.pack, got {type(qparams).__name__}")
    if qparams.fingerprint:
        check_belongs(plan, qparams)
    checked(qparams)
    plan_text = serial.to_json(plan)
    if [_specs(row) for row in serial.from_json(plan_text)] != [_specs(row) for row in plan]:
        raise ValueError(
            "this plan holds a spec that does not read back from its text; save formats of lowbit.formats only"
        )
    arrays: dict[str, Any] = {}
    tree = {
        "params": structure.describe(qparams.params, "params", arrays),
        "sites": structure.describe(qparams.sites, "sites", arrays),
    }
    card = {"format": FORMAT, "version": VERSION, "writer": _here(), "sha256": _ZEROS, "plan": plan_text, "tree": tree}
    if qparams.fingerprint:
        card["fingerprint"] = plan.fingerprint
    card["described"] = _described(
        card, {name: [list(x.shape), _DTYPES.get(str(x.dtype))] for name, x in arrays.items()}
    )
    chunks = encode_tensors(arrays, {FORMAT: json.dumps(card, separators=(",", ":"))})
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    mark = _mark(_ZEROS)
    assert chunks[0].count(mark) == 1
    chunks[0] = chunks[0].replace(mark, _mark(digest.hexdigest()))
    atomic.write_file(target, chunks)
    return sum(len(chunk) for chunk in chunks)


def load(path: str | os.PathLike[str]) -> tuple[Plan, QParams]:
    """Returns ``plan, qparams`` of a file that `save` wrote; arrays bit for bit as they were.

    The plan holds specs, not quantizers: `lowbit.execute` and `lowbit.export` need no more, and none of the code that
    trained the model.

    Raises:
        TypeError: if ``path`` is not a path.
        FileNotFoundError: if there is no such file.
        ValueError: if the file is truncated, altered, not lowbit's, of a newer version, or holds a scale that is none: the
            message says which.
    """
    source = _path(path)
    content = source.read_bytes()
    card = _card(source, content)
    if card["version"] > VERSION:
        raise ValueError(
            f"{source} has version {card['version']} of the lowbit format, which {_writer(card)} wrote; lowbit {_here()} reads up to "
            f"version {VERSION}: install a newer lowbit, that one or later"
        )
    digest = str(card.get("sha256"))
    mark = _mark(digest)
    if content.count(mark) != 1 or hashlib.sha256(content.replace(mark, _mark(_ZEROS))).hexdigest() != digest:
        raise ValueError(f"{source} was altered after it was saved: its checksum does not hold; copy it again")
    try:
        host = decode_tensors(content)
        arrays = {name: _on_device(name, array) for name, array in host.items()}
        plan = serial.from_json(card["plan"])
        tree = card["tree"]
        fingerprint = card.get("fingerprint", "")
        if fingerprint not in ("", plan.fingerprint):
            raise ValueError(
                f"its fingerprint is {fingerprint!r:.40}, its plan's is {plan.fingerprint!r}; copy it again"
            )
        qparams = QParams(
            structure.rebuild(tree["params"], arrays), structure.rebuild(tree["sites"], arrays), fingerprint
        )
        _check(plan, qparams)
        shapes = {name: [list(x.shape), _DTYPES[str(x.dtype)]] for name, x in host.items()}
        described = card.get("described", _described(card, shapes))
        if described != _described(card, shapes):
            if described == _described(card | {"fingerprint": plan.fingerprint}, shapes):
                raise ValueError(f"it lost its plan's fingerprint, {plan.fingerprint!r}; copy it again")
            raise ValueError("it describes another model than the one that was saved; copy it again")
        checked(qparams)
    except (
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        OverflowError,
        RecursionError,
        safetensors.SafetensorError,
    ) as error:
        raise ValueError(
            f"{source} is not a valid lowbit checkpoint: {type(error).__name__}: {error!s:.300}{_another(card)}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{source} is not a valid lowbit checkpoint: {error}{_another(card)}") from None
    return plan, qparams


def _here() -> str:
    return importlib.metadata.version("lowbit")


def _writer(card: Mapping[str, Any]) -> str:
    return f"lowbit {card['writer']!s:.40}" if "writer" in card else "an early lowbit"


def _another(card: Mapping[str, Any]) -> str:
    """What to say of a file that another version wrote, and this one cannot read."""
    if card.get("writer") == _here():
        return ""
    return f"; {_writer(card)} wrote it: load it there, and save it again from here with lowbit.pack"


def _check(plan: Plan, qparams: QParams) -> None:
    if not isinstance(qparams.sites, dict) or not all(isinstance(roles, dict) for roles in qparams.sites.values()):
        raise ValueError("its sites are no tree by operation and role")
    for path, q in qparams.weights().items():
        valid.check_tensor(q, path)
    valid.check_against(plan, qparams)
    if qparams.fingerprint and (difference := difference_of(plan, qparams)) is not None:
        raise ValueError(f"its parameters are not its plan's: {difference}; copy it again")


def _described(card: Mapping[str, Any], shapes: Mapping[str, Any]) -> str:
    """The digest of everything in a file that is not data; a fingerprint is that of the plan, and may be lacking."""
    is_of_no_plan = "writer" in card and not card.get("fingerprint")  # files before had digests that did not say so
    parts = [card["plan"], card["tree"], dict(sorted(shapes.items())), *(["no fingerprint"] if is_of_no_plan else [])]
    text = json.dumps(parts, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _path(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a string or a path, got {type(path).__name__}")
    return Path(path)


def _specs(row: Any) -> list[Any]:
    return [row.path, [site.spec for site in row.sites]]


def _mark(digest: str) -> bytes:
    """The checksum as it stands in the header: JSON text inside a JSON string."""
    return rf"\"sha256\":\"{digest}\"".encode()


def encode_tensors(arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> list[bytes]:
    """Returns a safetensors file in pieces: the header, then every tensor; the same input gives the same bytes.

    Args:
        arrays: by name.
        metadata: texts for the header.

    Raises:
        TypeError: for a dtype that safetensors does not have, or a tracer.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    chunks, offset = [b""], 0
    host = {name: _host(name, array) for name, array in arrays.items()}
    for name in sorted(host, key=lambda name: (-host[name].dtype.itemsize, name)):
        array = host[name]
        end = offset + array.nbytes
        header[name] = {"dtype": _DTYPES[str(array.dtype)], "shape": list(array.shape), "data_offsets": [offset, end]}
        chunks.append(array.tobytes())
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts on 8 bytes
    chunks[0] = len(text).to_bytes(8, "little") + text
    return chunks


def _host(name: str, array: Any) -> np.ndarray:
    if isinstance(array, Tracer):
        raise TypeError(f"{name} is a tracer: save cannot run under jit")
    if jnp.issubdtype(array.dtype, jax.dtypes.extended):
        raise TypeError(
            f"{name} is a {array.dtype}, a random key, which a safetensors file cannot hold: keep jax.random.key_data(key) "
            f"there and wrap it in the function, or pass the key as an argument"
        )
    if str(array.dtype) not in _DTYPES:
        raise TypeError(f"{name} has dtype {array.dtype}, which a safetensors file cannot hold; cast it first")
    host = np.ascontiguousarray(array)
    return host.reshape(array.shape).astype(host.dtype.newbyteorder("<"), copy=False)


def _card(source: Path, content: bytes) -> dict[str, Any]:
    """The metadata of a file whose length is what its header says."""
    length = int.from_bytes(content[:8], "little")
    if len(content) >= 9 and content[8:9] != b"{":
        raise ValueError(f"{source} is not a lowbit checkpoint: it is no safetensors file; lowbit.save writes one")
    if len(content) < 8 + max(length, 2):
        raise ValueError(f"{source} is truncated: {len(content)} bytes end inside its header; copy it again")
    try:
        header = json_text.parse_json(content[8 : 8 + length])
        card = json_text.parse_json(header["__metadata__"][FORMAT])
        is_ours = card["format"] == FORMAT and type(card["version"]) is int
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        size = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        is_ours, card, size = False, {}, 0
    if not is_ours:
        raise ValueError(
            f"{source} is not a lowbit checkpoint: its header lacks lowbit's metadata; lowbit.save writes one"
        )
    if len(content) != size:
        what = "is truncated" if len(content) < size else "has bytes after its end"
        raise ValueError(f"{source} {what}: {len(content)} bytes, its header says {size}; copy it again")
    return card


def decode_tensors(content: bytes) -> dict[str, np.ndarray]:
    """Returns the arrays of a safetensors file, by name.

    Raises:
        safetensors.SafetensorError: if it is none.
    """
    tensors = {}
    for name, entry in safetensors.deserialize(content):
        dtype = jnp.dtype(_NAMES[entry["dtype"]])
        host = np.frombuffer(entry["data"], dtype.newbyteorder("<")).astype(dtype, copy=False).view(dtype)  # native
        tensors[name] = host.reshape(entry["shape"])
    return tensors


def _on_device(name: str, host: np.ndarray) -> jax.Array:
    if jax.dtypes.canonicalize_dtype(host.dtype) != host.dtype:
        raise ValueError(f"{name} is {host.dtype}, which this process would round: set jax_enable_x64, then load again")
    return jnp.asarray(host)
