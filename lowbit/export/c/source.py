"""A program as C99: header and source."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr

from . import elementwise, movement, sums, types
from .arena import place, spans
from .constants import Tables, commented, identifier
from .elementwise import helper_source
from .emit import Emitter
from .graph import MOVES, CProgram, check, named, read_integers
from .schedule import Buffer, Repeat, Scheduler, Stage, Store, is_sum
from .simplify import simplify

RULES = {**elementwise.RULES, **movement.RULES, **sums.RULES}
"""What is done at every primitive."""

_RESERVED = frozenset(
    (
        "auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum", "extern",
        "float", "for", "goto", "if", "inline", "int", "long", "register", "restrict", "return", "short", "signed",
        "sizeof", "static", "struct", "switch", "typedef", "union", "unsigned", "void", "volatile", "while", "arena", "main",
    )
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Port:
    """An argument or a result of the C function.

    Attributes:
        name: its identifier.
        shape: its shape.
        dtype: of its elements.
        note: its meaning, for the header.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    note: str = ""

    @property
    def size(self) -> int:
        """How many elements."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclasses.dataclass(frozen=True)
class CModel:
    """A model in C.

    Attributes:
        name: prefix of everything global.
        header: the text of ``model.h``.
        source: the text of ``model.c``.
        inputs: of the function.
        outputs: of the function.
        arena_bytes: of working memory, static.
        constant_bytes: of all constant arrays.
        weights: elements by the name of the array that holds them.
    """

    name: str
    header: str
    source: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    arena_bytes: int
    constant_bytes: int
    weights: Mapping[str, int]


def ports(inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> list[tuple[Port, ...]]:
    """Returns the arguments and the results of the C function, their names unique.

    Args:
        inputs: JSON entries: name, shape, dtype, and of codes scale and zero point.
        outputs: likewise.
    """
    taken: set[str] = set(_RESERVED)
    arguments = []
    for entries, prefix in ((inputs, "in_"), (outputs, "out_")):
        group = []
        for entry in entries:
            name = identifier(entry["name"])
            is_ours = name[:1] in "aciktw" and name[1:].isdigit()
            if name in taken or not name.isidentifier() or is_ours:
                name = prefix + name
            while name in taken:
                name += "_"
            taken.add(name)
            note = f"value = {entry['scale']!r} * (code - {entry['zero_point']})" if "scale" in entry else ""
            note = note.replace("- -", "+ ")
            group.append(Port(name, tuple(entry["shape"]), np.dtype(entry["dtype"]), note))
        arguments.append(tuple(group))
    return arguments


def compiled(
    jaxpr: ClosedJaxpr,
    name: str,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    weights: Mapping[str, np.ndarray],
) -> CModel:
    """Returns a closed jaxpr of integers as C.

    Args:
        jaxpr: closed.
        name: prefix of everything global.
        inputs: names of its arguments.
        outputs: names of its results.
        weights: codes by path, to tell weights from other constants.

    Raises:
        ValueError: for a float, or a primitive that has no C.
    """
    graph = read_integers(jaxpr)
    simplify(graph)
    named(graph, weights)
    check(graph, lambda primitive: primitive in RULES)
    return _Writer(graph, name, inputs, outputs).program()


class _Writer:
    """The C of one program: its stages as functions over one arena, the tables they read, and the header for callers."""

    def __init__(self, graph: CProgram, name: str, inputs: Sequence[Port], outputs: Sequence[Port]):
        self.name, self.inputs, self.outputs = name, tuple(inputs), tuple(outputs)
        self.scheduler = Scheduler(graph)
        self.tables = Tables(name)
        uses = dict.fromkeys(self.scheduler.values, 0)
        for value in self.scheduler.values:
            for u in value.ins:
                uses[u] += 1
        names = {("input", i): port.name for i, port in enumerate(inputs)}
        names |= {("output", i): port.name for i, port in enumerate(outputs)}
        self.emitter = Emitter(RULES, self.scheduler.buffers, uses, self.tables, names)
        self.functions: list[str] = []
        self.stores: list[Store] = []

    def program(self) -> CModel:
        body = self._stages(self.scheduler.stages, 1)
        used = set(_words("\n".join(body)))
        unread = [f"    (void){port.name};" for port in self.inputs if port.name not in used]  # compilers warn of them
        live = spans(self.scheduler.stages)
        sizes = {buffer: buffer.value.bytes for buffer in live}
        arena = place(sizes, live)
        tables = list(self.tables)
        weights = {table.name: table.array.size for table in tables if table.path}
        weight_bytes = sum(table.bytes for table in tables if table.path)
        total = sum(table.bytes for table in tables)
        header = self._header(arena, total, weight_bytes, sum(weights.values()))
        parts = [
            f'/* {commented(self.name)}: written by lowbit. Integers only; see model.h. */\n#include "model.h"\n',
            _CHECKS,
            *(helper_source(name) for name in self.emitter.helpers),
            *(table.source() for table in tables),
            self._arena(live, arena),
            *self.functions,
            f"{self._signature()}\n{{\n" + "\n".join([*unread, *body, "    return 0;"]) + "\n}\n",
        ]
        source = "\n".join(part for part in parts if part)
        return CModel(self.name, header, source, self.inputs, self.outputs, arena, total, weights)

    def _stages(self, stages: Sequence[Stage], depth: int) -> list[str]:
        """Calls of all stages; the functions are added to the others."""
        lines = []
        for stage in stages:
            space = "    " * depth
            if isinstance(stage, Repeat):
                loop, turn = stage.loop, f"turn{len(self.emitter.turns) + 1}"
                self.emitter.turns[loop] = turn
                lines.append(f"{space}for (int32_t {turn} = 0; {turn} < {loop.length}; ++{turn}) {{")
                lines += [*self._stages(stage.stages, depth + 1), f"{space}}}"]
            else:
                lines.append(f"{space}{self._function(stage)};")
        return lines

    def _function(self, store: Store) -> str:
        """Adds the function of a store and returns its call."""
        lines = self.emitter.store(store)
        self.stores.append(store)
        text = "\n".join(f"    {line}" for line in lines)
        words = set(_words(text))
        used = [(f"const {types.c_type(p.dtype)} *{p.name}", p.name) for p in self.inputs if p.name in words]
        used += [(f"{types.c_type(p.dtype)} *{p.name}", p.name) for p in self.outputs if p.name in words]
        used += [(f"int32_t {turn}", turn) for turn in self.emitter.turns.values() if turn in words]
        call = f"stage_{len(self.stores)}"
        args = ", ".join(declared for declared, _ in used) or "void"
        self.functions.append(f"/* {self._described(store)} */\nstatic void {call}({args})\n{{\n{text}\n}}\n")
        return f"{call}({', '.join(name for _, name in used)})"

    def _described(self, store: Store) -> str:
        main = [v for v in self.emitter.made if v.where and v.name not in MOVES]
        main += [v for v in self.emitter.made if is_sum(v.name)]
        what = main[0].name if main else store.value.name
        path = f" of {main[0].where}" if main and main[0].where else ""
        return commented(f"{what}{path}: {store.value.dtype}{list(store.value.shape)}")

    def _arena(self, live: Mapping[Buffer, Any], size: int) -> str:
        if not live:
            return ""
        kinds = sorted({(types.suffix(b.value.dtype), types.c_type(b.value.dtype)) for b in live})
        members = "".join(
            f"    {kind} {suffix}[{size // (types.storage_bits(np.dtype(kind[:-2])) // 8)}];\n"
            for suffix, kind in kinds
        )
        places = [
            f"    at_{b.index} = {b.offset * 8 // types.storage_bits(b.value.dtype)}, "
            f"/* {b.value.dtype}{list(b.value.shape)}, stages {span.first + 1} to {span.last + 1} */\n"
            for b, span in sorted(live.items(), key=lambda each: each[0].index)
        ]
        return (
            "/* Working memory: arrays that are never needed together share it. */\nstatic union {\n"
            + members
            + "} arena;\n\n/* Where each array starts, in elements. */\nenum {\n"
            + "".join(places).rstrip()
            + "\n};\n"
        )

    def _signature(self) -> str:
        args = [f"const {types.c_type(p.dtype)} *{p.name}" for p in self.inputs]
        args += [f"{types.c_type(p.dtype)} *{p.name}" for p in self.outputs]
        return f"int {self.name}_run({', '.join(args) or 'void'})"

    def _header(self, arena: int, constants: int, weight_bytes: int, weights: int) -> str:
        guard = f"{self.name.upper()}_MODEL_H"
        per = f", {8 * weight_bytes / weights:.2f} bits each" if weights else ""
        rows = []
        for title, group in (("in", self.inputs), ("out", self.outputs)):
            for p in group:
                note = f": {p.note}" if p.note else ""
                rows.append(f" *   {title:<3} {p.name}  {types.c_type(p.dtype)}{list(p.shape)}{note}\n")
        sizes = "".join(
            f"#define {self.name.upper()}_{p.name.upper()}_SIZE {p.size}\n" for p in (*self.inputs, *self.outputs)
        )
        return (
            f"/* {self.name}: an integer-only model in C99, written by lowbit.\n *\n"
            + commented("".join(rows))
            + f" *\n * Constants (flash): {constants:,} bytes, of these {weight_bytes:,} for {weights:,} weights{per}.\n"
            + f" * Working memory (RAM): {arena:,} bytes, static; arguments and results are the caller's.\n"
            + " * No heap, no floats, no library but <stdint.h>. Arrays are row-major and must not overlap. Not reentrant.\n"
            + f" */\n#ifndef {guard}\n#define {guard}\n\n#include <stdint.h>\n\n"
            + f"#define {self.name.upper()}_ARENA_BYTES {arena}\n#define {self.name.upper()}_CONSTANT_BYTES {constants}\n"
            + sizes
            + '\n#ifdef __cplusplus\nextern "C" {\n#endif\n\n/* Returns 0. */\n'
            + f"{self._signature()};\n\n#ifdef __cplusplus\n}}\n#endif\n\n#endif\n"
        )


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() or c == "_" else " " for c in text).split()


_CHECKS = """/* C99 leaves these to the compiler; all that are known do them so, and a model needs them. */
#if (-1 >> 1) != -1
#error "right shifts of negative numbers must be arithmetic"
#endif
#if defined(__aarch64__) && defined(__GNUC__) && !defined(__clang__)
/* GCC 12 for 64-bit Arm may step through the arena by multiples of its address, and then lose the stores. */
#pragma GCC optimize ("no-ivopts")
#endif
typedef char lowbit_conversions_must_wrap[(int8_t)200 == -56 && (int32_t)3000000000u == -1294967296 ? 1 : -1];
"""
