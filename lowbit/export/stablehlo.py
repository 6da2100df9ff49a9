"""StableHLO of a traced function: text, portable artifact, and what is inside.

This file and `lowbit.export.quantized` are all that touches jaxlib's MLIR. jax has no public way to read a module's
operations or to choose the version of a portable artifact; the context comes from the public
`jax.interpreters.mlir.make_ir_context`. Every function here takes text, or a module as `module` makes it, and works on a
copy, because jaxlib's serializer rewrites the module it is given, in place. A copy shares its constants, which belong to the
context.
"""

import collections
import contextlib
import dataclasses
import functools
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import mlir
from jaxlib.mlir import ir  # noqa: TID251 - see above
from jaxlib.mlir.dialects import stablehlo  # noqa: TID251
from jaxlib.mlir.passmanager import PassManager  # noqa: TID251

from . import ragged

VERSION = "1.9.0"
"""Of portable artifacts, unless asked otherwise: read by every IREE and LiteRT converter tried; 2-bit integers need 1.5.0."""

_LEGALIZE = "builtin.module(strip-debuginfo,func.func(chlo-legalize-to-stablehlo))"


def module(function: Callable[..., Any], args: Sequence[Any], name: str) -> ir.Module:
    """Returns the StableHLO of ``function(*args)``, entry point ``main``.

    Args:
        function: traced with one input per flat argument.
        args: flat arrays or `jax.ShapeDtypeStruct`.
        name: of the module.
    """
    # A function of our own: jax keeps the module and its constants as long as the function lives.
    jitted = jax.jit(lambda *flat: function(*flat), keep_unused=True)
    if any(not isinstance(n, int) for x in args for n in x.shape):
        with mlir.make_ir_context():
            lowered = ir.Module.parse(jax.export.export(jitted)(*args).mlir_module())
    else:
        lowered: Any = jitted.lower(*args).compiler_ir("stablehlo")
    register_passes()
    with _copy(lowered) as module:
        PassManager.parse(_LEGALIZE).run(module.operation)  # erf and the like: no compiler but XLA has them
        _erase_shape_assertions(module)
        module.operation.attributes["sym_name"] = ir.StringAttr.get(name)
        for attribute in ("mhlo.num_partitions", "mhlo.num_replicas"):
            if attribute in module.operation.attributes:
                del module.operation.attributes[attribute]
        return module


_ARTIFACT = b"ML\xefR"  # how MLIR's bytecode begins


@contextlib.contextmanager
def _copy(code: str | bytes | ir.Module) -> Iterator[ir.Module]:
    """Gives a module of one's own, in its context, from a module, text, or a portable artifact."""
    with code.context if isinstance(code, ir.Module) else new_context() as context, ir.Location.unknown():
        if not isinstance(code, ir.Module):
            is_artifact = isinstance(code, bytes) and code.startswith(_ARTIFACT)
            yield stablehlo.deserialize_portable_artifact(context, code) if is_artifact else ir.Module.parse(code)
            return
        copy, attributes = ir.Module.create(), code.operation.attributes
        for named in (attributes[i] for i in range(len(attributes))):
            copy.operation.attributes[named.name] = named.attr
        for op in code.body.operations:
            copy.body.append(op.operation.clone())
        yield copy


def module_text(function: Callable[..., Any], args: Sequence[Any], name: str) -> str:
    """Returns the StableHLO text of ``function(*args)``: see `module`."""
    stream = io.BytesIO()
    print_text(module(function, args, name), stream)
    return stream.getvalue().decode()


def print_text(module: ir.Module, stream: io.BufferedIOBase) -> None:
    """Writes the text of a module, every constant written out, in UTF-8."""
    module.operation.print(file=stream, binary=True, large_elements_limit=None)


def load_quantized_types(context: Any) -> None:
    """Lets a context read ``!quant.uniform``: jax registers no such dialect, and reading any artifact does."""
    stablehlo.deserialize_portable_artifact(context, _empty())


@functools.cache
def _empty() -> bytes:
    with mlir.make_ir_context(), ir.Location.unknown():
        return stablehlo.serialize_portable_artifact(ir.Module.parse("module {}"), VERSION)


def new_context() -> Any:
    """Returns an MLIR context that reads StableHLO with quantized types."""
    context = mlir.make_ir_context()
    load_quantized_types(context)
    return context


def _erase_shape_assertions(module: Any) -> None:
    """Removes what jax writes for symbolic dimensions (they are at least 1): calls that only XLA knows."""
    calls = []

    def visit(op: Any) -> Any:
        if op.name == "stablehlo.custom_call" and "shape_assertion" in str(op.attributes["call_target_name"]):
            calls.append(op)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    for op in calls:
        op.operation.erase()


@functools.cache
def register_passes() -> None:
    """Makes StableHLO's passes known to MLIR, once."""
    stablehlo.register_stablehlo_passes()


def check_version(version: str) -> str:
    """Returns ``version`` if jaxlib can write it.

    Raises:
        TypeError: if it is not text.
        ValueError: if it is not between the oldest and the current one.
    """
    if not isinstance(version, str):
        raise TypeError(f"version must be text such as {VERSION!r}, got {type(version).__name__}")
    low, high = stablehlo.get_minimum_version(), stablehlo.get_current_version()
    parts = version.split(".")
    is_version = len(parts) == 3 and all(part.isdecimal() for part in parts)
    if not is_version or not _key(low) <= _key(version) <= _key(high):
        raise ValueError(f"version must be a StableHLO version from {low} to {high}, got {version!r}")
    return version


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def artifact(code: str | ir.Module, version: str, *, mark: bytes = b"") -> bytes:
    """Returns the portable artifact (VHLO bytecode) of a module, readable by that version and every newer one.

    Args:
        code: text or a module.
        version: of StableHLO.
        mark: bytes that the artifact shall carry, as a constant that nothing reads.

    Raises:
        ValueError: if an operation or type of the module did not exist in ``version``.
    """
    with _copy(code) as module:
        if mark:
            main = next(
                f for f in module.body.operations if ir.StringAttr(f.operation.attributes["sym_name"]).value == "main"
            )
            with ir.InsertionPoint.at_block_begin(main.regions[0].blocks[0]):
                value: Any = np.frombuffer(mark, np.uint8)  # jaxlib's stub knows no buffers
                stablehlo.ConstantOp(ir.DenseElementsAttr.get(value))
        try:
            data = stablehlo.serialize_portable_artifact(module, version)
        except Exception as error:  # noqa: BLE001 - MLIR raises errors of several private classes
            newest = stablehlo.get_current_version()
            raise ValueError(
                f"this model cannot be written for StableHLO {version}: {first_line(error)}; pass a newer version=, up "
                f"to {newest}"
            ) from None
        stablehlo.deserialize_portable_artifact(module.context, data)
        return data


def text_of(data: bytes) -> str:
    """Returns the StableHLO text of a portable artifact.

    Raises:
        ValueError: if it is none.
    """
    with new_context() as context, ir.Location.unknown():
        try:
            module = stablehlo.deserialize_portable_artifact(context, data)
        except Exception as error:  # noqa: BLE001 - MLIR raises errors of several private classes
            raise ValueError(f"not a StableHLO portable artifact that this jaxlib reads: {first_line(error)}") from None
        return str(module.operation.get_asm(large_elements_limit=None))


def first_line(error: Exception) -> str:
    """Returns the first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def current_version() -> str:
    """Returns the StableHLO version of the installed jaxlib."""
    return stablehlo.get_current_version()


def is_older_than(version: str) -> bool:
    """Returns whether the installed jaxlib's StableHLO is older than ``version``."""
    return _key(current_version()) < _key(version)


@dataclasses.dataclass(frozen=True)
class Constant:
    """One constant of a module.

    Attributes:
        element: MLIR's word for the element type: ``i4``, ``f32``.
        shape: its shape.
        bits: that it takes where elements are stored densely; a splat takes one element.
    """

    element: str
    shape: tuple[int, ...]
    bits: int


@dataclasses.dataclass(frozen=True)
class Contents:
    """What is inside a module.

    Attributes:
        constants: all of them.
        operations: how often each operation occurs, by name and element type of its first result: ``("stablehlo.add",
            "f32")``; a reduction's name goes on with what it reduces by: ``"stablehlo.reduce add"``.
        calls: targets of its custom calls, which name code outside the module.
        foreign: operations of other dialects than StableHLO's and functions'.
    """

    constants: tuple[Constant, ...]
    operations: dict[tuple[str, str], int]
    calls: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()

    @property
    def constant_bits(self) -> int:
        """Bits that all constants take at their own width."""
        return sum(constant.bits for constant in self.constants)


def contents(code: str | bytes | ir.Module) -> Contents:
    """Returns the constants and operations of a module, nested regions and private functions included."""
    constants: list[Constant] = []
    operations: collections.Counter[tuple[str, str]] = collections.Counter()
    calls: set[str] = set()
    foreign: set[str] = set()

    def visit(op: Any) -> Any:
        if op.name == "stablehlo.custom_call":
            calls.add(ir.StringAttr(op.attributes["call_target_name"]).value)
        if op.name.split(".")[0] not in ("builtin", "func", "stablehlo", "chlo"):
            foreign.add(op.name)
        if len(op.results) and op.name.startswith(("stablehlo.", "chlo.")):
            kind = op.results[0].type
            element, shape = _element_and_shape(kind)
            operations[op.name + _reducer(op), element] += 1
            if op.name == "stablehlo.constant":
                value = op.attributes["value"]
                count = 1 if getattr(value, "is_splat", False) else math.prod(shape)
                constants.append(Constant(element, shape, _width(element) * count))
        return ir.WalkResult.ADVANCE

    with _copy(code) as module:
        module.operation.walk(visit)
    return Contents(tuple(constants), dict(operations), tuple(sorted(calls)), tuple(sorted(foreign)))


_NARROW = re.compile(r"\bu?i([24])\b")


def has_ragged_rows(code: str | bytes) -> bool:
    """Returns whether a constant of 2-bit or 4-bit integers, in text or an artifact, has rows that end within a byte."""
    shapes = ((_NARROW.search(constant.element), constant.shape) for constant in contents(code).constants)
    return any(narrow is not None and ragged.has_ragged_rows(shape, int(narrow[1])) for narrow, shape in shapes)


def float_operations(code: str | ir.Module) -> dict[str, list[str]]:
    """Returns the operations that read or make floats, by the function they are in, or the composite it is the body of.

    Constants, and the composites themselves, compute nothing.
    """
    by_function: dict[str, list[str]] = {}
    with _copy(code) as module:
        functions = {ir.StringAttr(f.operation.attributes["sym_name"]).value: f for f in module.body.operations}
        names = _composites(functions)
        for where, function in functions.items():

            def visit(op: Any, where: str = where) -> Any:
                kinds = [v.type for v in (*op.operands, *op.results)]
                is_float = any(_element_and_shape(kind)[0].startswith(("f", "bf", "complex")) for kind in kinds)
                if is_float and op.name.startswith(("stablehlo.", "chlo.")) and op.name not in _COMPUTES_NOTHING:
                    by_function.setdefault(names.get(where, where), []).append(op.name)
                return ir.WalkResult.ADVANCE

            function.operation.walk(visit)
    return by_function


def _composites(functions: dict[str, Any]) -> dict[str, str]:
    """The composite that every private function belongs to, called by its body at whatever depth."""
    names: dict[str, str] = {}
    callers: dict[str, set[str]] = {}
    for caller, function in functions.items():

        def visit(op: Any, caller: str = caller) -> Any:
            if op.name == "stablehlo.composite":
                body = ir.FlatSymbolRefAttr(op.attributes["decomposition"]).value
                names[body] = ir.StringAttr(op.attributes["name"]).value
            if op.name == "func.call":
                callers.setdefault(ir.FlatSymbolRefAttr(op.attributes["callee"]).value, set()).add(caller)
            return ir.WalkResult.ADVANCE

        function.operation.walk(visit)
    for _ in functions:
        for callee, calling in callers.items():
            owners = {names.get(caller) for caller in calling}
            if callee not in names and len(owners) == 1 and (owner := owners.pop()) is not None:
                names[callee] = owner
    return names


_COMPUTES_NOTHING = ("stablehlo.constant", "stablehlo.composite", "stablehlo.return")


def _reducer(op: Any) -> str:
    if op.name not in ("stablehlo.reduce", "stablehlo.reduce_window"):
        return ""
    names = [inner.operation.name.removeprefix("stablehlo.") for inner in op.regions[0].blocks[0].operations]
    return " " + " ".join(name for name in names if name != "return")


def _element_and_shape(kind: Any) -> tuple[str, tuple[int, ...]]:
    if not str(kind).startswith("tensor<"):
        return str(kind), ()
    ranked = ir.RankedTensorType(kind)
    word = str(ranked.element_type)
    storage = word.removeprefix("!quant.uniform<")
    return (word if storage == word else re.split("[<:]", storage)[0]), tuple(ranked.shape)


def _width(element: str) -> int:
    word = element.removeprefix("complex<").rstrip(">")
    digits = "".join(c for c in word.split("E")[0] if c.isdigit())
    return int(digits or 32) * (2 if element.startswith("complex") else 1)


def on_xla(data: bytes, inputs: Sequence[Any], outputs: Sequence[Any]) -> Callable[..., list[jax.Array]]:
    """Returns a function of flat arrays: a portable artifact compiled by this process's XLA.

    Args:
        data: the artifact.
        inputs: shapes and dtypes of the module's arguments, as `jax.ShapeDtypeStruct`; dimensions may be symbolic.
        outputs: likewise of its results.
    """

    def same_signature(*values):
        del values
        return [jnp.zeros(out.shape, out.dtype) for out in outputs]

    shell = jax.export.export(jax.jit(same_signature, keep_unused=True))(*inputs)
    exported = dataclasses.replace(shell, mlir_module_serialized=data)
    return jax.jit(exported.call)


def run_in_interpreter(text: str, args: Sequence[Any]) -> list[np.ndarray]:
    """Returns the results of a module in StableHLO's own interpreter: slow, one operation at a time, as specified.

    Its integer ``convolution`` accumulates in the width of its operands: 8-bit sums wrap, in silence.

    Args:
        text: StableHLO, entry point ``main``.
        args: flat arrays.

    Raises:
        ValueError: if it cannot run the module.
    """
    with new_context(), ir.Location.unknown():
        buffers: list[Any] = [np.asarray(x, order="C") for x in args]
        values = [ir.DenseElementsAttr.get(buffer) for buffer in buffers]
        try:
            outs = stablehlo.eval_module(ir.Module.parse(text), values)
        except Exception as error:  # noqa: BLE001 - MLIR raises errors of several private classes
            raise ValueError(f"the interpreter cannot run this module: {first_line(error)}") from None
        return [np.array(ir.DenseElementsAttr(out)) for out in outs]
