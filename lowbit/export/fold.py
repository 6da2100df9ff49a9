"""Constants of an exported program: computed once, here, and kept in as few bits as they take.

A program whose parameters are constants holds much that depends on them alone: codes to be unpacked, reciprocals of
scales, sums of weights for zero points, batch-norm factors. Left in the module, each compiler would compute them in its
own way, at every call. `fold` computes them by XLA and leaves the rest.

It never writes a wider constant than it must. Integers are stored in the narrowest of i2, i4, i8, i16 and i32 that holds
their values, and converted in the module. A float array that is cheaper to say than to store (a dequantized weight: codes
times a few scales) stays the operations that make it.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr

from lowbit.interpret.kinds import is_smaller
from lowbit.program import compat, primitives
from lowbit.program.eqn import Eqn
from lowbit.program.evaluate import evaluate
from lowbit.program.read import Equation, Program
from lowbit.program.read import read as read_program
from lowbit.targets.target import INLINED_BYTES

from . import lowering
from .ragged import has_ragged_rows, packed, unpacked

_CHEAP = (
    primitives.SHAPED
    | primitives.CASTS
    | primitives.ADDITIONS
    | {"slice", "pad", "iota", "concatenate", "gather", "copy", "bitcast_convert_type"}
    | {"mul", "div", "neg", "clamp", "select_n", "reduce_precision", "and", "or", "shift_left"}
    | primitives.COMPARISONS
)
"""What may stay in the program to save a wide constant: how every format decodes its codes, and what moves weights."""

_FIELDS = ("and", "or", "shift_left")
"""Cut codes into bit fields: as wide as the codes themselves, and never stored beside them."""


_WORTH_BITS = 1024
"""A conversion or a recipe is written for at least this many bits saved."""

_NARROW = (jnp.int2, jnp.uint2, jnp.int4, jnp.uint4, jnp.int8, jnp.uint8, jnp.int16, jnp.uint16)


@dataclasses.dataclass(eq=False)
class Known:
    """A value that depends on constants alone.

    Attributes:
        shape: its shape.
        dtype: its dtype.
        eqn: the equation that makes it, or None for a constant.
        index: which of the equation's results.
        inputs: the equation's operands.
        value: the array, once computed; of integers in the dtype they are stored in.
    """

    shape: tuple[int, ...]
    dtype: Any
    eqn: Any = None
    index: int = 0
    inputs: "tuple[Known, ...]" = ()
    value: Any = None

    @property
    def is_cheap(self) -> bool:
        """Whether the program may compute it from other constants instead of storing it."""
        return self.eqn is not None and self.eqn.primitive.name in _CHEAP

    @property
    def is_integer(self) -> bool:
        """Whether its dtype is an integer."""
        return jnp.issubdtype(self.dtype, jnp.integer)

    @functools.cached_property
    def store(self) -> Any:
        """The dtype it is stored in: of integers, the narrowest that holds the values."""
        count = math.prod(self.shape)
        if not self.is_integer or not count:
            return self.dtype
        host = np.asarray(self.value)
        low, high, width = int(host.min()), int(host.max()), jnp.iinfo(self.dtype).bits
        for dtype in _NARROW:
            limits = jnp.iinfo(dtype)
            is_inlined = limits.bits < 8 and limits.bits * count <= 8 * INLINED_BYTES
            is_worth = (width - limits.bits) * count >= _WORTH_BITS
            if limits.min <= low and high <= limits.max and is_worth and not is_inlined:
                return jnp.dtype(dtype)
        return self.dtype

    @functools.cached_property
    def bits(self) -> int:
        """Bits of the constant; of a comparison those of what it selects."""
        width = 32 if self.is_cheap and self.dtype == jnp.bool_ else bit_width(self.store)
        return width * math.prod(self.shape)

    @functools.cached_property
    def sources(self) -> frozenset["Known"]:
        """The constants it can be computed from in the program."""
        if not self.is_cheap:
            return frozenset((self,))
        return frozenset().union(*(k.sources if k.is_recipe else (k,) for k in self.inputs))

    @functools.cached_property
    def is_recipe(self) -> bool:
        """Whether it is computed in the program: where that takes fewer bits of constants."""
        margin = -_WORTH_BITS if self.is_cheap and self.eqn.primitive.name in _FIELDS else _WORTH_BITS
        return self.is_cheap and sum(known.bits for known in self.sources) + margin <= self.bits


def bit_width(dtype: Any) -> int:
    """Returns the bits of one element.

    Example:
        >>> bit_width(jnp.int4), bit_width(jnp.bfloat16), bit_width(bool)
        (4, 16, 1)
    """
    dtype = jnp.dtype(dtype)
    if dtype == jnp.bool_:
        return 1
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.iinfo(dtype).bits
    return jnp.finfo(dtype).bits if jnp.issubdtype(dtype, jnp.floating) else 8 * dtype.itemsize


@dataclasses.dataclass
class _Program:
    """What is left: equations in order, every operand a `Known` or the number of an earlier result."""

    steps: list[tuple[Any, list[Any], list[int]]]
    outs: list[Any]
    kept: frozenset[str]
    rewritten: frozenset[str]
    count: int = 0
    spread: dict[Any, tuple[Any, Any]] = dataclasses.field(default_factory=dict)
    """By broadcast result: the equation, and what it broadcasts."""

    def slots(self, n: int) -> list[int]:
        self.count += n
        return list(range(self.count - n, self.count))


def fold(
    jaxpr: ClosedJaxpr,
    constants: Sequence[Any] = (),
    *,
    kept: Collection[str] = (),
    rewritten: Collection[str] = lowering.REWRITTEN,
) -> Callable[..., list[Any]]:
    """Returns the function of a closed jaxpr, to be traced: constants computed, the rest as it is.

    With ``has_bytes=True`` it takes rows of narrow constants that end within a byte from bytes: `lowbit.export.ragged`.

    Args:
        jaxpr: closed; its constants are the parameters.
        constants: the values of its first inputs.
        kept: names of primitives that stay in the program, of constants too.
        rewritten: names of primitives that are written as `lowbit.export.lowering` has them.
    """
    program = _Program([], [], frozenset(kept), frozenset(rewritten))
    read = read_program(jaxpr)
    args = [*map(_leaf, constants), *program.slots(len(read.inputs) - len(constants))]
    program.outs = _flatten(program, read, args)
    used = [v for _, values, _ in program.steps for v in values] + program.outs
    used = [v for v in dict.fromkeys(used) if isinstance(v, Known)]
    _evaluate(known for known in _ingredients(used) if known.is_integer)
    written = _ingredients(used, only_needed=True)
    _evaluate(written)
    for known in written:
        known.inputs = ()  # what it was computed from need not stay in memory
    return functools.partial(_run, program)


def _leaf(value: Any) -> Known:
    return Known(tuple(np.shape(value)), jnp.result_type(value), value=value)


def _flatten(program: _Program, read: Program, args: Sequence[Any]) -> list[Any]:
    """Adds the equations that are left to ``program`` and returns what the results are."""

    def equation(equation: Equation, values: list[Any]) -> list[Any]:
        eqn = equation.eqn
        if (divisor := _small_divisor(program, eqn, values)) is not None:
            value, shape, axes = divisor
            product = lowering.quotient(equation.outs[0].shape, shape, axes)
            return _flatten(program, read_program(product), [values[0], value])
        if _is_known(program, eqn, values):
            return [Known(out.shape, out.dtype, eqn, i, tuple(values)) for i, out in enumerate(equation.outs)]
        outs = program.slots(len(equation.outs))
        program.steps.append((eqn, values, outs))
        return outs

    def spread(of: Equation, values: list[Any]) -> list[Any]:
        (out,) = equation(of, values)
        if len(values) == 1:
            program.spread[out] = of.eqn, values[0]
        return [out]

    return evaluate(read, args, {"broadcast_in_dim": spread}, equation, lambda v: _leaf(v.value))


def _small_divisor(program: _Program, eqn: Eqn, values: Sequence[Any]) -> Any:
    """What a float32 division divides by, its shape and axes, where that is smaller than the result; else None."""
    name = eqn.primitive.name
    if name != "div" or name not in program.rewritten or eqn.outvars[0].aval.dtype != jnp.float32:
        return None
    full = eqn.outvars[0].aval.shape
    shape = eqn.invars[1].aval.shape
    if is_smaller(shape, full):
        return values[1], shape, None
    if values[1] in program.spread:
        source, small = program.spread[values[1]]
        shape = source.invars[0].aval.shape
        if is_smaller(shape, full):
            return small, shape, source.params["broadcast_dimensions"]
    return None


def _is_known(program: _Program, eqn: Eqn, values: Sequence[Any]) -> bool:
    """Whether an equation depends on constants alone, and may be computed here."""
    is_constant = all(isinstance(v, Known) for v in values) and not eqn.effects and not _is_symbolic(eqn)
    return is_constant and eqn.primitive.name not in program.kept


def _is_symbolic(eqn: Eqn) -> bool:
    """Whether a result's shape is not known when exporting: it cannot be a constant."""
    return any(not isinstance(n, int) for var in eqn.outvars for n in var.aval.shape)


def _ingredients(knowns: Iterable[Known], *, only_needed: bool = False) -> list[Known]:
    """The values themselves and what their recipes may take; ``only_needed``: just the constants that are written."""
    ingredients: dict[Known, None] = {}
    todo = list(knowns)
    while todo:
        known = todo.pop()
        if known in ingredients:
            continue
        if not only_needed:
            ingredients[known] = None
            todo += known.inputs if known.is_cheap else ()
        elif known.is_recipe:
            todo += known.inputs
        else:
            ingredients[known] = None
    return list(ingredients)


_BATCH_BYTES = 2**24
"""Computed by one program: codes as the int32 of their operation take four to eight times what is stored of them."""


def _evaluate(knowns: Iterable[Known]) -> None:
    """Computes values, in one compiled program a batch."""
    batch: list[Known] = []
    size = 0
    for known in knowns:
        if known.value is not None:
            continue
        batch.append(known)
        size += math.prod(known.shape) * jnp.dtype(known.dtype).itemsize
        if size > _BATCH_BYTES:
            _compute(batch)
            batch, size = [], 0
    _compute(batch)


def _compute(wanted: Sequence[Known]) -> None:
    """Computes values, in one compiled program, and keeps integers in the dtype they are stored in."""
    leaves: dict[Known, None] = {}
    for known in _closure(wanted):
        if known.value is not None:
            leaves[known] = None

    @jax.jit
    def compute(values):
        env = {known: _widened(value, known.dtype) for known, value in zip(leaves, values, strict=True)}
        done: dict[tuple[int, tuple[Known, ...]], list[Any]] = {}
        for known in reversed(_closure(wanted)):
            if known not in env:
                key = (id(known.eqn), known.inputs)
                if key not in done:
                    done[key] = compat.rebind(known.eqn, [env[k] for k in known.inputs])
                env[known] = done[key][known.index]
        return [env[known] for known in wanted]

    if wanted:
        for known, value in zip(wanted, compute([known.value for known in leaves]), strict=True):
            known.value = value
            if known.is_integer:
                known.value = np.asarray(value).astype(known.store, copy=False)


def _widened(value: Any, dtype: Any) -> Any:
    return value if jnp.result_type(value) == dtype else lax.convert_element_type(value, dtype)


def _closure(wanted: Sequence[Known]) -> list[Known]:
    """What the values depend on, up to what is computed already; users before ingredients."""
    order: dict[Known, None] = {}
    state: dict[Known, bool] = {}
    stack = [(known, False) for known in wanted]
    while stack:
        known, is_done = stack.pop()
        if is_done:
            order[known] = None
        elif known not in state:
            state[known] = True
            stack.append((known, True))
            stack += [(k, False) for k in known.inputs] if known.value is None else []
    return list(reversed(order))


def _run(program: _Program, *args: Any, has_bytes: bool = False) -> list[Any]:
    """The program, to be traced; ``has_bytes``: rows that end within a byte are bytes, taken apart."""
    env: dict[int, Any] = dict(enumerate(args))
    emitted: dict[Known, Any] = {}
    shared: dict[Any, np.ndarray] = {}

    def get(value: Any) -> Any:
        if not isinstance(value, Known):
            return env[value]
        if value not in emitted:
            emitted[value] = _emit(value, get, shared, has_bytes=has_bytes)
        return emitted[value]

    for eqn, values, slots in program.steps:
        rebind = lowering.rebind if eqn.primitive.name in program.rewritten else compat.rebind
        env.update(zip(slots, rebind(eqn, [get(v) for v in values]), strict=True))
    return [get(value) for value in program.outs]


def _emit(known: Known, get: Callable[[Any], Any], shared: dict[Any, np.ndarray], *, has_bytes: bool) -> Any:
    """The value in the program being traced: a recipe, a constant, or a narrow constant and its conversion."""
    if known.is_recipe:
        return compat.rebind(known.eqn, [get(k) for k in known.inputs])[known.index]
    if jnp.issubdtype(known.dtype, jax.dtypes.extended):
        return known.value
    constant = np.asarray(known.value).astype(known.store, copy=False)
    is_packed = has_bytes and known.store != known.dtype and has_ragged_rows(known.shape, bit_width(known.store))
    stored = packed(constant) if is_packed else constant
    name = (constant.dtype, constant.shape, hashlib.sha256(np.ascontiguousarray(stored).view(np.uint8).data).digest())
    stored = shared.setdefault(name, stored)  # a shared weight is one constant
    if known.store == known.dtype:
        return stored
    array = jnp.asarray(stored)  # jax 0.12 converts numpy arrays at once
    if is_packed:
        array = unpacked(array, known.shape, known.store)
    return lax.convert_element_type(array, known.dtype)
