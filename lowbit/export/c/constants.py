"""Constant arrays in C: in the fewest bits that hold them, 4-bit and 2-bit ones packed, each written once."""

import dataclasses
import re
from collections.abc import Iterator

import numpy as np

from . import types
from .graph import Value, collapsed, storage
from .index import Index, flat


@dataclasses.dataclass(frozen=True)
class Table:
    """One array of the source.

    Attributes:
        name: its identifier.
        array: its elements; axes along which they do not change have length 1.
        dtype: that it is stored in: int2 and int4 are packed.
        path: of the weight that it is, or "".
    """

    name: str
    array: np.ndarray
    dtype: np.dtype
    path: str

    @property
    def is_packed(self) -> bool:
        """Whether several elements share a byte."""
        return types.bits(self.dtype) < 8

    @property
    def bytes(self) -> int:
        """Bytes in the program."""
        return -(-self.array.size * types.bits(self.dtype) // 8)

    def source(self) -> str:
        """Returns the definition: of a weight a global one, so that its size can be read from the object."""
        kind = "uint8_t" if self.is_packed else types.c_type(self.dtype)
        words = [types.literal(x, np.dtype(kind[:-2])) for x in packed(self.array, types.bits(self.dtype)).tolist()]
        head = f"{'' if self.path else 'static '}const {kind} {self.name}[{len(words)}] = {{"
        note = (
            f"/* {commented(self.path)}: {list(self.array.shape)}, {types.bits(self.dtype)} bits */\n"
            if self.path
            else ""
        )
        return f"{note}{head}\n{wrapped(words)}\n}};\n"


def packed(array: np.ndarray, bits: int) -> np.ndarray:
    """Returns 2-bit or 4-bit integers as bytes, the first in the lowest bits; wider ones as they are, flat.

    Example:
        >>> packed(np.array([1, -1, 7]), 4).tolist()
        [241, 7]
    """
    row = array.reshape(-1).astype(np.uint8 if array.dtype == np.bool_ else array.dtype)
    if bits >= 8:
        return row
    each = 8 // bits
    fields = np.zeros(-(-row.size // each) * each, np.uint8)
    fields[: row.size] = row.astype(np.uint8) & (2**bits - 1)
    shifts = np.arange(each, dtype=np.uint8) * bits
    return np.bitwise_or.reduce(fields.reshape(-1, each) << shifts, axis=1).astype(np.uint8)


def wrapped(words: list[str], width: int = 112) -> str:
    """Returns comma-separated words in lines."""
    lines, line = [], "   "
    for word in words:
        if len(line) + len(word) + 2 > width:
            lines.append(line)
            line = "   "
        line += f" {word},"
    return "\n".join([*lines, line])


def commented(text: str) -> str:
    """Returns text that may stand in a comment."""
    return text.replace("*/", "* /").replace("/*", "/ *")


def identifier(text: str) -> str:
    """Returns text as the end of a C identifier.

    Example:
        >>> identifier("Conv_0/kernel@1")
        'Conv_0_kernel_1'
    """
    return re.sub(r"\W+", "_", text).strip("_")


class Tables:
    """The constant arrays of a program.

    Args:
        prefix: of all names.
    """

    def __init__(self, prefix: str):
        self.prefix = prefix
        self.found: dict[object, Table] = {}
        self.by_value: dict[Value, Table] = {}

    def of(self, value: Value) -> Table:
        """Returns the array of a constant; those of the same elements in the same order are one, whatever their shapes.

        A weight of one input is equal to its sum over the inputs, which corrects for a zero point.
        """
        if value not in self.by_value:
            assert value.array is not None
            array = collapsed(value.array)
            key = array.dtype.kind == "u", array.astype(np.int64, casting="unsafe").tobytes()
            if key not in self.found:
                names = {table.name for table in self.found.values()}
                name = f"{self.prefix}_{identifier(value.where) or f'c{len(self.found)}'}"
                while name in names:
                    name += "_"
                self.found[key] = Table(name, array, storage(array, is_weight=bool(value.where)), value.where)
            self.by_value[value] = self.found[key]
        return self.by_value[value]

    def position(self, value: Value, indices: tuple[Index, ...]) -> Index:
        """Returns where an element is in the array of a constant."""
        assert value.array is not None
        shape = collapsed(value.array).shape
        return flat([Index() if n == 1 else i for i, n in zip(indices, shape, strict=True)], shape)

    def __iter__(self) -> Iterator[Table]:
        return iter(self.found.values())
