"""The C code of one store: loops over the elements of a value, and for each the code that computes it.

Code is made backwards from the element: a rule per primitive says what it needs of its operands, at which indices. Every
statement goes to the outermost block that has all its variables, and is made once there.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from . import types
from .constants import Tables
from .graph import Loop, Value
from .index import Atom, Index, flat, unflat
from .schedule import Buffer, Store, access

_LONGEST = 72
"""Characters of an expression that is written where it is used."""

_RESHAPES = ("reshape", "squeeze")


@dataclasses.dataclass(frozen=True)
class Expr:
    """A C expression.

    Attributes:
        text: safe as an operand.
        level: how many blocks enclose its innermost variable.
    """

    text: str
    level: int = 0

    @property
    def is_short(self) -> bool:
        """Whether it is a name or a number: free to repeat."""
        return self.text.lstrip("-").isalnum() or self.text.replace("_", "a").isalnum()


class Block:
    """Statements, and blocks inside.

    Args:
        header: what stands before the brace.
        is_guarded: whether its statements may not be moved out: a condition.
    """

    def __init__(self, header: str, *, is_guarded: bool = False):
        self.header, self.is_guarded = header, is_guarded
        self.lines: list[str | Block] = []
        self.known: dict[Any, Expr] = {}

    def text(self, depth: int) -> list[str]:
        """Returns the lines, indented."""
        space = "    " * depth
        lines = [f"{space}{self.header} {{"]
        for line in self.lines:
            lines += [f"{space}    {line}"] if isinstance(line, str) else line.text(depth + 1)
        return [*lines, f"{space}}}"]


Rule = Callable[[Any, Value, tuple[Index, ...]], Expr]
"""What is done at a primitive: ``(emitter, value, indices) ->`` the code of that element."""


class Emitter:
    """Writes stores as C.

    Args:
        rules: by primitive.
        buffers: of the values that have one.
        uses: how many operations read each value.
        tables: takes the constants.
        names: of inputs and outputs: by kind and number.
    """

    def __init__(
        self,
        rules: Mapping[str, Rule],
        buffers: Mapping[Value, Buffer],
        uses: Mapping[Value, int],
        tables: Tables,
        names: Mapping[tuple[str, int], str],
    ):
        self.rules, self.buffers, self.uses, self.tables, self.names = rules, buffers, uses, tables, names
        self.helpers: dict[str, None] = {}
        self.turns: dict[Loop, str] = {}
        self.stack: list[Block] = []
        self.count = 0
        self.reads: set[Buffer] = set()
        self.made: list[Value] = []

    # names

    def fresh(self, word: str) -> str:
        """Returns a new name."""
        self.count += 1
        return f"{word}{self.count}"

    def helper(self, name: str) -> str:
        """Returns the name of a helper function, which the source then has."""
        self.helpers[name] = None
        return name

    def call(self, word: str, dtype: Any, args: Sequence[Expr]) -> str:
        """Returns a call of a helper function for a dtype."""
        return f"{self.helper(f'{word}_{types.suffix(dtype)}')}({', '.join(arg.text for arg in args)})"

    def turn(self, loop: Loop) -> Index:
        """Returns which slice a turn of a loop is about."""
        index = Index.of(Atom(self.turns[loop], 0, loop.length - 1, 0))
        return Index((), loop.length - 1) - index if loop.is_reversed else index

    def memory(self, buffer: Buffer) -> str:
        """Returns the C array of a buffer, up to the index."""
        if buffer.kind != "arena":
            return f"{self.names[buffer.kind, buffer.index]}["
        return f"arena.{types.suffix(buffer.value.dtype)}[at_{buffer.index} + "

    # blocks

    @property
    def _floor(self) -> int:
        """The innermost condition."""
        return max((i for i, block in enumerate(self.stack) if block.is_guarded), default=0)

    def line(self, text: str) -> None:
        """Adds a statement to the innermost block."""
        self.stack[-1].lines.append(text)

    @contextmanager
    def block(self, header: str, *, is_guarded: bool = False) -> Iterator[Block]:
        """A block inside the innermost one; left out where it stays empty."""
        block = Block(header, is_guarded=is_guarded)
        self.stack.append(block)
        yield block
        self.stack.pop()
        if block.lines:
            self.stack[-1].lines.append(block)

    @contextmanager
    def counted(self, word: str, count: int) -> Iterator[Index]:
        """A loop from 0 to ``count``; none where that is 1."""
        if count == 1:
            yield Index()
            return
        name = self.fresh(word)
        with self.block(f"for (int32_t {name} = 0; {name} < {count}; ++{name})"):
            yield Index.of(Atom(name, 0, count - 1, len(self.stack) - 1))

    @contextmanager
    def guarded(self, conditions: Sequence[str]) -> Iterator[None]:
        """A condition; none where there is nothing to ask."""
        if not conditions:
            yield
            return
        with self.block(f"if ({' && '.join(conditions)})", is_guarded=True):
            yield

    def temporary(self, expr: Expr, dtype: Any) -> Expr:
        """Returns a name for an expression, defined in the outermost block that has its variables."""
        if expr.is_short:
            return expr
        level = max(expr.level, self._floor)
        name = self.fresh("t")
        self.stack[level].lines.append(f"const {types.c_type(dtype)} {name} = {_bare(expr.text)};")
        return Expr(name, level)

    def variable(self, dtype: Any, start: Expr) -> Expr:
        """Returns a new variable in the innermost block."""
        name = self.fresh("a")
        self.line(f"{types.c_type(dtype)} {name} = {_bare(start.text)};")
        return Expr(name, len(self.stack) - 1)

    def chosen(self, conditions: Sequence[tuple[str, int]], then: Callable[[], Expr], other: Expr, dtype: Any) -> Expr:
        """Returns ``then()`` where all conditions hold, evaluated only there, else ``other``.

        Args:
            conditions: text and level of each.
            then: makes the code.
            other: otherwise.
            dtype: of both.
        """
        if not conditions:
            return then()
        test = Expr(f"({' && '.join(text for text, _ in conditions)})", max(level for _, level in conditions))
        block = Block("", is_guarded=True)
        self.stack.append(block)
        expr = then()
        self.stack.pop()
        if len(block.lines) == 1 and isinstance(only := block.lines[0], str) and f" {expr.text} = " in only:
            expr = Expr(only.partition(" = ")[2].removesuffix(";"), len(self.stack) - 1)
            block.lines.clear()
        if not block.lines:
            test = self.temporary(test, np.dtype(np.bool_))
            return Expr(f"({test.text} ? {expr.text} : {other.text})", max(test.level, expr.level, other.level))
        result = self.variable(dtype, other)
        block.header = f"if {test.text}"
        block.lines.append(f"{result.text} = {_bare(expr.text)};")
        self.line_block(block)
        return result

    def line_block(self, block: Block) -> None:
        """Adds a finished block to the innermost one."""
        self.stack[-1].lines.append(block)

    # values

    def emit(self, value: Value, indices: tuple[Index, ...]) -> Expr:
        """Returns the code of one element."""
        if not self._is_there(value, indices):
            self._prepare(value, indices)
        return self._emit(value, indices)

    def _is_there(self, value: Value, indices: tuple[Index, ...]) -> bool:
        return value.array is not None or value in self.buffers or self._found(value, indices) is not None

    def _prepare(self, value: Value, indices: tuple[Index, ...]) -> None:
        """Emits what a chain of elementwise operations reads, in order: it may be longer than Python's stack."""
        shared: dict[Value, None] = {}
        todo = [value]
        while todo:
            v = todo.pop()
            for i, u in enumerate(v.ins):
                is_same = u.shape == v.shape and access(v, i)[0] is None
                if is_same and u not in shared and not self._is_there(u, indices):
                    shared[u] = None
                    todo.append(u)
        for v in sorted(shared, key=lambda v: v.number):
            self._emit(v, indices)

    def _found(self, value: Value, indices: tuple[Index, ...]) -> Expr | None:
        key = value, indices
        return next((block.known[key] for block in reversed(self.stack) if key in block.known), None)

    def _emit(self, value: Value, indices: tuple[Index, ...]) -> Expr:
        if (known := self._found(value, indices)) is not None:
            return known
        if value.array is not None:
            expr = self._constant(value, indices)
        elif value in self.buffers:
            expr = self._loaded(value, flat(indices, value.shape))
        else:
            expr = self._computed(value, indices)
        if not expr.is_short and (self.uses.get(value, 1) > 1 or len(expr.text) > _LONGEST):
            expr = self.temporary(expr, value.dtype)
        self.stack[max(expr.level, self._floor)].known[value, indices] = expr
        return expr

    def _computed(self, value: Value, indices: tuple[Index, ...]) -> Expr:
        self.made.append(value)
        return self.rules[value.name](self, value, indices)

    def _constant(self, value: Value, indices: tuple[Index, ...]) -> Expr:
        if value.splat is not None:
            return Expr(types.literal(value.splat, value.dtype))
        return self._entry(value, self.tables.position(value, indices))

    def _entry(self, value: Value, position: Index) -> Expr:
        table = self.tables.of(value)
        text = f"{table.name}[{position.text}]"
        if table.is_packed:
            text = f"{self.helper(f'int{types.bits(table.dtype)}_at')}({table.name}, {position.text})"
        if not types.is_signed(value.dtype) or types.bits(value.dtype) > 32:
            text = f"({types.c_type(value.dtype)}){text}"
        return Expr(text, position.level)

    def _loaded(self, value: Value, position: Index) -> Expr:
        buffer = self.buffers[value]
        self.reads.add(buffer)
        return Expr(f"{self.memory(buffer)}{position.text}]", position.level)

    def emit_flat(self, value: Value, position: Index) -> Expr:
        """Returns the code of the element at a row-major position."""
        while value.name in _RESHAPES and value not in self.buffers:
            value = value.ins[0]
        if value.array is None and value in self.buffers:
            return self._loaded(value, position)
        if value.splat is not None:
            return self._constant(value, ())
        if value.array is not None and self.tables.of(value).array.size == value.size:
            return self._entry(value, position)
        return self.emit(value, unflat(position, value.shape))

    def store(self, store: Store) -> list[str]:
        """Returns the statements of a store, and notes in it which buffers it reads."""
        self.stack, self.reads, self.made, self.count = [Block("")], store.reads, [], 0
        value = store.value
        is_fresh = self.buffers.get(value) is store.buffer
        while is_fresh is False and value.name in _RESHAPES and value not in self.buffers:
            value = value.ins[0]
        base = self.turn(store.loop) * value.size if store.loop is not None else Index()
        self._nest(store, value, base, [], is_fresh=is_fresh)
        return [line for part in self.stack[0].lines for line in ([part] if isinstance(part, str) else part.text(0))]

    def _nest(self, store: Store, value: Value, base: Index, indices: list[Index], *, is_fresh: bool) -> None:
        if not is_fresh and (value in self.buffers or value.splat is not None):  # a copy, or one number
            with self.counted("i", value.size) as index:
                self.line(f"{self.memory(store.buffer)}{(base + index).text}] = {self.emit_flat(value, index).text};")
            return
        axis = len(indices)
        if axis < len(value.shape):
            with self.counted("i", value.shape[axis]) as index:
                self._nest(store, value, base, [*indices, index], is_fresh=is_fresh)
            return
        if is_fresh:
            self._prepare(value, tuple(indices))
        expr = (self._computed if is_fresh else self.emit)(value, tuple(indices))
        position = base + flat(indices, value.shape)
        self.line(f"{self.memory(store.buffer)}{position.text}] = {_bare(expr.text)};")


def _bare(text: str) -> str:
    """The text without parentheses around all of it."""
    if not (text.startswith("(") and text.endswith(")")):
        return text
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0 and i < len(text) - 1:
            return text
    return text[1:-1]
