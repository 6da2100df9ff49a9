"""GGUF files: what the header says, and tensors as float32. Read by path; of block types those that small models ship in.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3, little-endian. A block is 32 entries along the fastest axis:
``Q8_0`` one float16 ``d`` and 32 bytes ``q``, ``d q``; ``Q4_1`` float16 ``d`` and ``m`` and 16 bytes of two nibbles, those of the first 16 entries
low, ``d q + m``.
"""

import dataclasses
import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_BLOCK = 32


@dataclasses.dataclass(frozen=True)
class Gguf:
    """A file that was read.

    Attributes:
        facts: what the header says, by name.
        data: the bytes of all tensors.
        places: of every tensor: shape, slowest axis first; type; where its bytes begin.
    """

    facts: dict[str, Any]
    data: np.ndarray
    places: dict[str, tuple[tuple[int, ...], int, int]]

    def tensor(self, name: str) -> Float[np.ndarray, "..."]:
        """Returns a tensor in float32.

        Raises:
            KeyError: for an unknown one.
            ValueError: for a type of blocks that is not read.
        """
        shape, kind, start = self.places[name]
        if kind not in _KINDS:
            raise ValueError(f"{name} has the type {kind}; read are {', '.join(map(str, _KINDS))}")
        size, decode = _KINDS[kind]
        count = int(np.prod(shape))
        per = 1 if kind in (0, 1) else _BLOCK
        return decode(self.data[start : start + count // per * size]).reshape(shape)


def read_gguf(path: Path) -> Gguf:
    """Returns a GGUF file; tensors are not decoded yet.

    Raises:
        ValueError: for another kind of file, or another version.
    """
    with path.open("rb") as file:
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    at = _Cursor(whole)
    magic, version = whole[:4], struct.unpack_from("<I", whole, 4)[0]
    if magic != b"GGUF" or version != 3:
        raise ValueError(f"{path} is no GGUF file of version 3: it begins with {magic!r} and {version}")
    at.place = 8
    tensors, facts = at.scalar("Q"), at.scalar("Q")
    found = {}
    for _ in range(facts):
        name = at.text()
        found[name] = at.value(at.scalar("I"))
    places = {}
    for _ in range(tensors):
        name = at.text()
        shape = tuple(at.scalar("Q") for _ in range(at.scalar("I")))[::-1]
        places[name] = shape, at.scalar("I"), at.scalar("Q")
    step = found.get("general.alignment", 32)
    start = -(-at.place // step) * step
    return Gguf(found, np.frombuffer(whole, np.uint8, offset=start), places)


@dataclasses.dataclass
class _Cursor:
    data: Any
    place: int = 0

    def scalar(self, code: str) -> Any:
        (found,) = struct.unpack_from("<" + code, self.data, self.place)
        self.place += struct.calcsize("<" + code)
        return found

    def text(self) -> str:
        length = self.scalar("Q")
        self.place += length
        return bytes(self.data[self.place - length : self.place]).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY:
            inner, count = self.scalar("I"), self.scalar("Q")
            return [self.value(inner) for _ in range(count)]
        return self.scalar(_SCALARS[kind])


def _q4_1(data: np.ndarray) -> np.ndarray:
    blocks = data.reshape(-1, 20)
    d, m = (blocks[:, i : i + 2].copy().view(np.float16).astype(np.float32) for i in (0, 2))
    nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return nibbles.astype(np.float32) * d + m


def _q8_0(data: np.ndarray) -> np.ndarray:
    blocks = data.reshape(-1, 34)
    d = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return blocks[:, 2:].view(np.int8).astype(np.float32) * d


_KINDS: dict[int, tuple[int, Callable[[np.ndarray], np.ndarray]]] = {
    0: (4, lambda data: data.copy().view(np.float32)),
    1: (2, lambda data: data.copy().view(np.float16).astype(np.float32)),
    3: (20, _q4_1),
    8: (34, _q8_0),
}
"""By type: bytes of an entry or block, and how they are decoded."""
