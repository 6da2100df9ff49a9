"""A jaxpr as values: calls inlined, constants computed where that takes no more bits than what they are made from."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from lowbit.program import compat, primitives
from lowbit.program.evaluate import evaluate
from lowbit.program.read import Equation, Program
from lowbit.program.read import read as read_program
from lowbit.program.spellings import SPELLINGS, spelling

from . import types

_TRANSPARENT = primitives.SAME - primitives.COPIES
_COUNT = itertools.count()
_SMALL_BITS = 2048
"""A computed constant may always take this much."""

MOVES = primitives.SHAPED | primitives.CASTS | primitives.COPIES | {"concatenate", "pad", "slice"}
"""Change where elements are, or their dtype: computed where they are read."""


@dataclasses.dataclass(eq=False)
class Value:
    """One array of the program.

    Attributes:
        name: the primitive that makes it; or ``input``, ``constant``, and of loops ``carry`` (at the start of a turn),
            ``turn`` (one slice of a scanned array), ``carried`` and ``stacked`` (results).
        shape: its shape.
        dtype: its dtype.
        ins: what it is made from.
        params: of the primitive.
        eqn: the equation, to compute constants with.
        index: which of the equation's, the program's or the loop's.
        array: of a constant: its elements, at least 8 bits each.
        loop: which loop it belongs to.
        where: the path of the weight it is, or multiplies.
        number: increases in program order.
        bounds: numbers between which all elements are, once known.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Any
    ins: "tuple[Value, ...]" = ()
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    eqn: Any = None
    index: int = 0
    array: np.ndarray | None = None
    loop: "Loop | None" = None
    where: str = ""
    number: int = dataclasses.field(default_factory=lambda: next(_COUNT))
    bounds: tuple[int, int] | None = None

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of a buffer that holds it."""
        return self.size * types.storage_bits(self.dtype) // 8

    @property
    def is_leaf(self) -> bool:
        """Whether it is there without being computed."""
        return self.name in ("input", "constant", "carry", "carried", "stacked")

    @property
    def splat(self) -> int | None:
        """The one number that a constant repeats; None for others."""
        if self.array is None or not self.array.size:
            return None
        first = self.array.flat[0]
        return int(first) if bool((self.array == first).all()) else None

    def become(self, other: "Value") -> None:
        """Turns into another value of the same shape and dtype; its users stay, and its place in the order."""
        for field in ("name", "ins", "params", "eqn", "index", "array"):
            setattr(self, field, getattr(other, field))
        self.bounds = None


@dataclasses.dataclass(eq=False)
class Loop:
    """A scan.

    Attributes:
        length: its turns.
        is_reversed: whether it starts at the end.
        parent: the loop around it.
        inits: of the carries.
        carries: at the start of a turn.
        afters: at its end.
        ys: made in every turn.
        finals: the carries after the loop.
        stacks: all turns' ``ys``.
        number: increases in program order.
    """

    length: int
    is_reversed: bool
    parent: "Loop | None"
    inits: list[Value]
    carries: list[Value]
    afters: list[Value]
    ys: list[Value]
    finals: list[Value] = dataclasses.field(default_factory=list)
    stacks: list[Value] = dataclasses.field(default_factory=list)
    number: int = dataclasses.field(default_factory=lambda: next(_COUNT))

    @property
    def depth(self) -> int:
        """How many loops are around it, itself counted."""
        return 1 + (self.parent.depth if self.parent is not None else 0)


@dataclasses.dataclass(eq=False)
class CProgram:
    """A program.

    Attributes:
        inputs: its arguments.
        outputs: its results.
    """

    inputs: list[Value]
    outputs: list[Value]

    def values(self) -> list[Value]:
        """Returns everything that the results need, in program order."""
        needed: dict[Value, None] = {}
        todo, loops = list(self.outputs), set()
        while todo:
            value = todo.pop()
            if value in needed:
                continue
            needed[value] = None
            todo += value.ins
            if value.loop is not None and value.loop not in loops:
                loops.add(value.loop)
                todo += [*value.loop.inits, *value.loop.afters]
            if value.name == "stacked" and value.loop is not None:
                todo.append(value.loop.ys[value.index])
        return sorted(needed, key=lambda v: (v.array is None, v.number))  # constants may be made late


def read_integers(closed: ClosedJaxpr) -> CProgram:
    """Returns the program of a closed jaxpr.

    Raises:
        ValueError: for a float.
    """
    program = read_program(closed)
    inputs = [Value("input", v.shape, v.dtype, index=i) for i, v in enumerate(program.inputs)]
    graph = CProgram(inputs, _Writer()(program, inputs))
    _fold(graph)
    return graph


def constant(array: Any, dtype: Any) -> Value:
    """Returns a constant; numbers that the dtype cannot hold wrap."""
    wide = np.asarray(array).astype(np.bool_ if dtype == np.bool_ else types.c_type(dtype).removesuffix("_t"))
    return Value("constant", wide.shape, jnp.dtype(dtype), array=wide)


def _constant(array: Any, dtype: Any = None) -> Value:
    dtype = jnp.result_type(array) if dtype is None else dtype
    _check_dtype(dtype, "a constant")
    return constant(array, dtype)


def _check_dtype(dtype: Any, what: str) -> None:
    if dtype != np.bool_ and not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"the C form holds integers only, and {what} is {dtype}: export a full-integer plan")


@dataclasses.dataclass(frozen=True)
class _Writer:
    """Programs as values, inside the loop ``around``."""

    around: Loop | None = None

    def __call__(self, program: Program, args: Sequence[Value]) -> list[Value]:
        handlers = {
            "scan": self.scan,
            **dict.fromkeys(_TRANSPARENT, lambda equation, values: values),
            **dict.fromkeys(SPELLINGS, self.spelled),
        }
        return evaluate(program, args, handlers, _made, lambda v: _constant(v.value, v.dtype))

    def spelled(self, equation: Equation, values: Sequence[Value]) -> list[Value]:
        return self(spelling(equation), values)

    def scan(self, equation: Equation, values: Sequence[Value]) -> list[Value]:
        consts, n_carry = compat.scan_counts(equation.eqn)
        outside = equation.loop
        assert outside is not None
        inits, xs = list(values[consts : consts + n_carry]), values[consts + n_carry :]
        loop = Loop(outside.length, outside.is_reversed, self.around, inits, [], [], [])
        loop.carries = [Value("carry", v.shape, v.dtype, index=i, loop=loop) for i, v in enumerate(inits)]
        turns = [Value("turn", x.shape[1:], x.dtype, (x,), loop=loop) for x in xs]
        outs = _Writer(loop)(outside.body, [*values[:consts], *loop.carries, *turns])
        loop.afters, loop.ys, loop.number = outs[:n_carry], outs[n_carry:], next(_COUNT)
        loop.finals = [Value("carried", v.shape, v.dtype, index=i, loop=loop) for i, v in enumerate(inits)]
        loop.stacks = [
            Value("stacked", (loop.length, *y.shape), y.dtype, index=i, loop=loop) for i, y in enumerate(loop.ys)
        ]
        return [*loop.finals, *loop.stacks]


def _made(equation: Equation, values: Sequence[Value]) -> list[Value]:
    for out in equation.outs:
        _check_dtype(out.dtype, f"the result of {equation.name}")
    return [
        Value(equation.name, out.shape, out.dtype, tuple(values), equation.params, equation.eqn, i)
        for i, out in enumerate(equation.outs)
    ]


def _fold(graph: CProgram) -> None:
    """Computes what depends on constants alone; what would take more bits than its sources stays as it is."""
    values = graph.values()
    known: set[Value] = set()
    for value in values:
        if value.name == "constant" or (value.eqn is not None and value.ins and known.issuperset(value.ins)):
            known.add(value)
    needed = {u for v in values if v not in known for u in v.ins} | set(graph.outputs)
    for loop in {v.loop for v in values if v.loop is not None}:
        needed |= {*loop.inits, *loop.afters, *loop.ys}
    edge = [v for v in values if v in needed and v in known and v.name != "constant"]
    for value, array in zip(edge, _computed(edge), strict=True):
        folded = constant(array, value.dtype)
        sources = list(_sources(value))
        names = set(_names(value))
        is_moved = names <= MOVES and not names <= {"convert_element_type"}
        limit = sum(stored_bits(u.array) for u in sources) + _SMALL_BITS
        if folded.splat is not None or (not is_moved and stored_bits(folded.array) <= limit):
            value.become(folded)


def _computed(wanted: Sequence[Value]) -> Iterable[Any]:
    order = sorted(set().union(*(_upstream(v) for v in wanted)), key=lambda v: v.number) if wanted else []
    leaves = [v for v in order if v.array is not None]

    @jax.jit
    def compute(arrays):
        env = dict(zip(leaves, arrays, strict=True))
        for value in order:
            if value not in env:
                env[value] = compat.rebind(value.eqn, [env[u] for u in value.ins])[value.index]
        return [env[v] for v in wanted]

    return compute([jnp.asarray(v.array, v.dtype) for v in leaves]) if wanted else []


def _upstream(value: Value) -> dict[Value, None]:
    sources, todo = {}, [value]
    while todo:
        v = todo.pop()
        if v not in sources:
            sources[v] = None
            todo += v.ins
    return sources


def _sources(value: Value) -> Iterator[Value]:
    return (v for v in _upstream(value) if v.array is not None)


def _names(value: Value) -> Iterator[str]:
    return (v.name for v in _upstream(value) if v.array is None)


def collapsed(array: np.ndarray) -> np.ndarray:
    """Returns a constant with every axis along which it does not change cut to length 1."""
    for axis in range(array.ndim):
        first = array.take([0], axis) if array.shape[axis] else array
        if array.shape[axis] > 1 and bool((array == first).all()):
            array = first
    return array


def stored_bits(array: np.ndarray | None) -> int:
    """Returns the bits that a constant takes in the program."""
    assert array is not None
    kept = collapsed(array)
    return types.bits(storage(kept)) * kept.size if kept.size > 1 else 0


PACKED_ELEMENTS = 64
"""From here on 4 and 2 bits are packed; for fewer elements the code that unpacks them takes more."""


def storage(array: np.ndarray, *, is_weight: bool = False) -> Any:
    """Returns the dtype that a constant is stored in: int2 and int4 are packed, of weights always."""
    dtype = types.narrowest(int(array.min()), int(array.max())) if array.size else jnp.dtype(jnp.int8)
    is_small = array.size < PACKED_ELEMENTS and not is_weight
    return jnp.dtype(jnp.int8) if types.bits(dtype) < 8 and is_small else dtype


def named(graph: CProgram, weights: Mapping[str, np.ndarray]) -> None:
    """Says of weights which they are, by their codes in whatever order, and of their users what they multiply.

    Args:
        graph: changed in place.
        weights: codes by path.
    """

    def key(codes: np.ndarray) -> Any:
        numbers, counts = np.unique(codes.astype(np.int64), return_counts=True)
        return codes.size, tuple(numbers), tuple(counts)

    by_key: dict[Any, list[str]] = {}
    for path, codes in weights.items():
        by_key.setdefault(key(codes), []).append(path)
    named_already: set[str] = set()
    for value in graph.values():
        if value.array is not None and value.size > 1:
            fitting = by_key.get(key(value.array), [])  # several, where the same codes stand in another order
            same = [p for p in fitting if np.array_equal(weights[p].reshape(-1), value.array.reshape(-1))]
            others = [p for p in fitting if p not in named_already]
            value.where = next(iter((*same, *others, *fitting)), "")
            named_already.add(value.where)
        elif value.name in (*primitives.PRODUCTS, *MOVES, "mul"):
            value.where = next((u.where for u in value.ins if u.where and _is_constant(u)), "")


def _is_constant(value: Value) -> bool:
    return all(u.array is not None for u in _upstream(value) if not u.ins)


def check(graph: CProgram, known: Callable[[str], bool]) -> None:
    """Raises ValueError for a primitive that has no rule, naming it, its source line and the layer before it."""
    last = ""
    for value in graph.values():
        last = value.where or last
        if not (value.is_leaf or value.name == "turn" or known(value.name)):
            line = compat.source_line(value.eqn)
            place = ", ".join(word for word in (line, f"after {last}" if last else "") if word)
            shape = f"{value.dtype}{list(value.shape)}"
            raise ValueError(f"the C form cannot hold {value.name!r} ({shape}{', ' if place else ''}{place})")
