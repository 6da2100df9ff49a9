"""Which values get a buffer, and in which order they are stored.

Everything else is computed where it is read: the code of an output's element reaches back to the nearest buffers. A value
gets a buffer where computing it again would cost too much: it, or something it is made from, is a sum, and it is read more
than once an element, or from several places. The buffer is put at the narrowest value of its chain: after the
requantization of a convolution (8 bits), never at its accumulator (32 bits).
"""

import dataclasses
import math
from collections.abc import Iterator

from lowbit.program import primitives

from .graph import CProgram, Loop, Value

_COST = {"div": 8, "rem": 8, "gather": 2, "pad": 1, "concatenate": 1, "clz": 4, "population_count": 8}
_FREE = primitives.SHAPED | primitives.CASTS | primitives.COPIES | {"iota", "slice", "turn"}
_SPREAD = ("broadcast_in_dim", "reshape", "squeeze")
_CHEAP = 16
"""Operations that are computed again however often the result is read."""
_DEAR = 64
"""Operations, times further reads, from which a value gets a buffer."""


@dataclasses.dataclass(eq=False)
class Buffer:
    """Memory of one array.

    Attributes:
        kind: ``input``, ``output`` or ``arena``.
        index: which.
        value: what it holds: its shape and dtype.
        offset: bytes from the start of the arena, once placed.
    """

    kind: str
    index: int
    value: Value
    offset: int = 0


@dataclasses.dataclass(eq=False)
class Store:
    """Computes a value and writes it.

    Attributes:
        value: what is computed.
        buffer: where it goes.
        loop: whose turn counts in front of the value's axes.
        reads: the buffers that it reads, once written in C.
    """

    value: Value
    buffer: Buffer
    loop: Loop | None = None
    reads: set[Buffer] = dataclasses.field(default_factory=set)


@dataclasses.dataclass(eq=False)
class Repeat:
    """Does stages once a turn."""

    loop: Loop
    stages: "list[Store | Repeat]"


Stage = Store | Repeat


def is_sum(name: str) -> bool:
    """Returns whether a primitive reads many elements for one."""
    return name in ("dot_general", "conv_general_dilated") or name.startswith("reduce_")


def home(value: Value) -> Loop | None:
    """Returns the innermost loop whose turns change a value."""
    if value.loop is not None:
        return value.loop.parent if value.name in ("carried", "stacked") else value.loop
    return None


class Scheduler:
    """Chooses buffers and order.

    Attributes:
        buffers: of every value that has one.
        stages: in order.
    """

    def __init__(self, graph: CProgram):
        self.graph, self.values = graph, graph.values()
        self.homes: dict[Value, Loop | None] = {}
        self.fixed: set[Value] = set()
        for value in self.values:
            around = [home(value), *(self.homes[u] for u in value.ins)]
            self.homes[value] = max(around, key=lambda loop: 0 if loop is None else loop.depth)
            if value.array is not None or (value.ins and self.fixed.issuperset(value.ins)):
                self.fixed.add(value)
        self.loops = sorted({v.loop for v in self.values if v.loop is not None}, key=lambda loop: loop.number)
        self.kept: set[Value] = set()
        self.uses: dict[Value, dict[int, float]] = {v: {} for v in self.values}
        self.tokens: dict[object, int] = {}
        self.buffers: dict[Value, Buffer] = {}
        self.count = 0
        self._choose()
        self.stages = self._assigned()

    def _choose(self) -> None:
        roots = [*self.graph.outputs]
        for loop in self.loops:
            roots += [*loop.inits, *(y for _, y in self._ys(loop))]
            self.kept |= {v for v in loop.afters if not v.is_leaf} - self.fixed
        for i, value in enumerate(roots):
            self.uses[value][self._token(("root", i))] = 1.0
        for value in reversed(self.values):
            if value.is_leaf or value in self.fixed:
                continue
            if value not in self.kept and self._is_worth(value):
                self.kept.add(self._narrowest(value))
            uses = {self._token(value): 1.0} if value in self.kept else self.uses[value]
            for i, u in enumerate(value.ins):
                self._read(value, i, u, uses)

    def _ys(self, loop: Loop) -> Iterator[tuple[Value, Value]]:
        """Pairs of what all turns make, as far as it is read, and what one makes."""
        return ((stack, y) for stack, y in zip(loop.stacks, loop.ys, strict=True) if stack in self.uses)

    def _token(self, key: object) -> int:
        return self.tokens.setdefault(key, len(self.tokens))

    def _read(self, value: Value, i: int, u: Value, uses: dict[int, float]) -> None:
        key, times = access(value, i)
        inner, outer = self.homes[value], self.homes[u]
        while inner is not outer and inner is not None:
            times *= inner.length
            inner = inner.parent
        for token, weight in uses.items():
            new = token if key is None else self._token((token, key))
            self.uses[u][new] = max(self.uses[u].get(new, 0.0), weight * times)

    def _is_worth(self, value: Value) -> bool:
        reads, places = sum(self.uses[value].values()), len(self.uses[value])
        if places == 1 and reads < 1.001:
            return False
        operations, has_sum = self._cost(value)
        if has_sum:
            return True
        return operations > _CHEAP and operations * (max(reads, places) - 1) > _DEAR

    def _cost(self, value: Value) -> tuple[int, bool]:
        """Operations from the nearest buffers to one element, and whether there is a sum among them."""
        total, seen, todo = 0, {value}, [value]
        while todo:
            v = todo.pop()
            if is_sum(v.name):
                return total, True
            total += 0 if v.name in _FREE else _COST.get(v.name, 1)
            for u in v.ins:
                if u not in seen and not u.is_leaf and u not in self.fixed and u not in self.kept:
                    seen.add(u)
                    todo.append(u)
        return total, False

    def _narrowest(self, value: Value) -> Value:
        """The value, or one that it is made from in a few operations and that takes fewer bytes."""
        best, cost, v = (value.bytes, 0, value), 0, value
        while not is_sum(v.name):
            data = {u for u in v.ins if u not in self.fixed}
            cost += 0 if v.name in _FREE else _COST.get(v.name, 1)
            if len(data) != 1 or cost > _CHEAP:
                break
            (v,) = data
            if v.is_leaf or self.homes[v] is not self.homes[value]:
                break
            if (v.bytes, cost) <= best[:2]:
                best = (v.bytes, cost, v)
        return best[2]

    def _assigned(self) -> list[Stage]:
        self.free = dict(enumerate(self.graph.outputs))
        for value in self.values:
            if value.name == "input":
                self.buffers[value] = Buffer("input", value.index, value)
        for loop in self.loops:
            for value, carry in zip(loop.finals, loop.carries, strict=True):
                self.buffers[value] = self.buffers[carry] = self._buffer(value)
            for stack, _ in self._ys(loop):
                self.buffers[stack] = self._buffer(stack)
        for value in self.values:
            if value in self.kept:
                self.buffers[value] = self._buffer(value)
        late = [Store(value, Buffer("output", i, value)) for i, value in self.free.items()]
        return self._region(None, late)

    def _buffer(self, value: Value) -> Buffer:
        """A buffer: that of a result, where the value is one."""
        result = next((i for i, v in self.free.items() if v is value), None)
        if result is not None:
            del self.free[result]
            return Buffer("output", result, value)
        self.count += 1
        return Buffer("arena", self.count - 1, value)

    def _region(self, loop: Loop | None, late: list[Store]) -> list[Stage]:
        """The stages of one turn, or of the program: each as early as its value is there."""
        here = [v for v in self.values if v in self.kept and self.homes[v] is loop]
        ordered: list[tuple[int, int, Stage]] = [(v.number, 0, Store(v, self.buffers[v])) for v in here]
        ordered += [(store.value.number, 1, store) for store in late]
        for inner in self.loops:
            if inner.parent is loop:
                carried = zip(inner.inits, inner.carries, strict=True)
                ordered += [(inner.number, 0, Store(v, self.buffers[carry])) for v, carry in carried]
                ys = [Store(y, self.buffers[stack], inner) for stack, y in self._ys(inner)]
                stages = [*self._region(inner, ys), *self._next(inner)]
                ordered.append((inner.number, 1, Repeat(inner, stages)))
        return [stage for _, _, stage in sorted(ordered, key=lambda each: each[:2])]

    def _next(self, loop: Loop) -> list[Stage]:
        """The carries of the next turn; through another buffer where one carry becomes another."""
        first: list[Stage] = []
        last: list[Stage] = []
        for after, carry in zip(loop.afters, loop.carries, strict=True):
            if after is carry:
                continue
            if after.name == "carry":
                self.count += 1
                copy = dataclasses.replace(after, name="copy", ins=(after,), loop=None)
                self.buffers[copy] = Buffer("arena", self.count - 1, copy)
                first.append(Store(copy, self.buffers[copy]))
                after = copy
            last.append(Store(after, self.buffers[carry]))
        return [*first, *last]


def access(value: Value, i: int) -> tuple[object, float]:
    """Returns how an operation reads its operand: None if element by element, and how often each element."""
    u, name = value.ins[i], value.name
    if not u.size or not value.size:
        return value, 1.0
    if name == "dot_general":
        (left, _), _ = value.params["dimension_numbers"]
        return (value, i), value.size * math.prod(value.ins[0].shape[a] for a in left) / u.size
    if name == "conv_general_dilated":
        kernel = value.ins[1].shape
        return (value, i), value.size * value.ins[1].size / kernel[value.params["dimension_numbers"][1][0]] / u.size
    if name.startswith("reduce_window"):
        return (value, i), value.size * math.prod(value.params["window_dimensions"]) / u.size
    if is_sum(name) or name in ("pad", "concatenate", "dynamic_update_slice"):
        return (value, i), 1.0
    if name == "gather" and i == 1:
        return (value, i), value.size * u.shape[-1] / u.size
    if name in _SPREAD:
        dims = tuple(value.params.get("broadcast_dimensions", ()))
        return (name, dims, u.shape, value.shape), value.size / u.size
    if name in ("rev", "slice", "transpose", "turn", "gather", "dynamic_slice"):
        return (value, i), value.size / u.size
    return (None if u.shape == value.shape else ("spread", u.shape, value.shape)), value.size / u.size
