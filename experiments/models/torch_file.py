"""Float arrays out of a ``.pth`` file that ``torch.save`` wrote before version 1.6, without torch.

The file is five pickles and then, per storage, its length and its bytes. The pickles are read by a machine that knows the
few instructions such a file needs and makes dictionaries, tuples, strings and numbers; nothing of the file is called.
"""

import pickletools
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {"FloatStorage": np.float32, "LongStorage": np.int64, "HalfStorage": np.float16, "DoubleStorage": np.float64}
_PUSHED = ("LONG1", "BININT", "BININT1", "BININT2", "BINUNICODE", "BINFLOAT")
_FIXED = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class _Tensor:
    """What ``torch._utils._rebuild_tensor_v2`` is told: storage, offset, shape, strides."""

    def __init__(self, storage: tuple[Any, ...], offset: int, shape: tuple[int, ...], strides: tuple[int, ...]):
        self.kind, self.key = storage[1], storage[2]
        self.offset, self.shape, self.strides = offset, shape, strides


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of the state dictionary in a ``.pth`` file, by name.

    Args:
        path: a file of the format before the zip archives of torch 1.6.

    Raises:
        ValueError: for another format, or instructions that a state dictionary does not need.
    """
    with path.open("rb") as file:
        if _unpickled(file, path) != _MAGIC:
            raise ValueError(f"{path} is no .pth file of the format before torch 1.6")
        for _ in range(2):
            _unpickled(file, path)  # the protocol's version, and the machine's sizes
        found, keys = _unpickled(file, path), _unpickled(file, path)
        tensors = {name: value for name, value in found.items() if isinstance(value, _Tensor)}
        kinds = {tensor.key: tensor.kind for tensor in tensors.values()}
        storages = {}
        for key in keys:
            count = int(np.frombuffer(file.read(8), "<i8")[0])
            dtype = np.dtype(_DTYPES[kinds[key]])
            storages[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    arrays = {}
    for name, tensor in tensors.items():
        flat = storages[tensor.key]
        step = [n * flat.itemsize for n in tensor.strides]
        view = np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, step, writeable=False)
        arrays[name] = np.array(view)
    return arrays


def _unpickled(file: BinaryIO, path: Path) -> Any:
    """The next pickle of ``file`` as plain data; its classes are names, its calls the few below."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        first = marks.pop()
        items = stack[first:]
        del stack[first:]
        return items

    for instruction, argument, _ in pickletools.genops(file):
        name = instruction.name
        if name in ("PROTO", "STOP"):
            continue
        if name in _PUSHED or name == "GLOBAL":
            stack.append(argument)
        elif name in _FIXED:
            stack.append(_FIXED[name])
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[int(argument or 0)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument or 0)])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name == "APPENDS":
            items = since_mark()
            stack[-1].extend(items)
        elif name == "SETITEM":
            key, value = stack[-2:]
            del stack[-2:]
            stack[-1][key] = value
        elif name == "SETITEMS":
            items = since_mark()
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name == "BUILD":
            stack.pop()  # attributes of an ordered dictionary: torch's version numbers
        elif name == "BINPERSID":
            word, kind, *rest = stack.pop()
            stack.append((word, str(kind).split()[-1], *rest))
        elif name == "REDUCE":
            given = stack.pop()
            stack[-1] = _called(str(stack[-1]), given, path)
        else:
            raise ValueError(f"{path} holds the pickle instruction {name}, which a state dictionary does not need")
    return stack[-1]


def _called(name: str, given: tuple[Any, ...], path: Path) -> Any:
    if name == "collections OrderedDict":
        return {}
    if name == "torch._utils _rebuild_tensor_v2":
        return _Tensor(*given[:4])
    raise ValueError(f"{path} wants to call {name}, which a state dictionary does not need")
