"""Placement: which integer computation every equation becomes, and which values share a grid.

The rules, in the order in which they are tried:

* (e) softmax and normalizations are matched with templates;
* (a) a dot or convolution, and every other sum, absorbs the affine equations by constants that follow it while nothing else
  reads what lies between, then relu and clips; after a weight, constants that vary along its channels alone, as the biases of
  hardware do: others are an affine step of their own;
* (b) movements share one grid; concatenations, selections and loop carries unify theirs;
* (c) what is elementwise in one tensor becomes a table;
* (d) sums, products and maxima of two tensors get a grid and absorb a relu or clip that follows;
* integer arguments are indices: what is computed of integers alone stays as it is written, and may pick rows of a weight;
* (f) anything else raises, with its source line.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lowbit.core.paths import common_prefix
from lowbit.interpret.operations import Operation
from lowbit.interpret.refusals import Refusals
from lowbit.program import primitives, read
from lowbit.program.constants import written_value
from lowbit.program.read import Equation, Value

from . import templates
from .absorb import bounds_of, channels, is_affine, is_float, varying
from .flat import small_shape
from .grids import Grids
from .nodes import MOVES, TABULAR, Node, Program

_SUMS = primitives.SUMS - {"add_any"}
_PAIRS = {"add": "add", "add_any": "add", "sub": "add", "mul": "product", "max": "max", "min": "min"}
_KINDS = {"dot_general": "dot", "conv_general_dilated": "conv"}


def place(flat: read.Program, operations: Mapping[tuple[int, ...], Operation]) -> Program:
    """Returns the integer form of a flat program.

    Args:
        flat: the program.
        operations: its dots and convolutions by address.

    Raises:
        ValueError: for an equation that has no integer form, with its source line (rule f).
    """
    placer = _Placer(flat, operations)
    for var in flat.inputs[flat.count :]:
        if var in placer.readers:
            placer.tried(lambda var=var: placer.input(var), [var], placer.top)
    placer.run(flat.equations, placer.top)
    outs: list[Value] = []
    for var in flat.outs:
        placer.tried(lambda var=var: outs.append(placer.need(var, placer.top, None)), [], placer.top)
    placer.refused.check()
    return Program(flat, placer.top, outs, placer.grids.named(dict.fromkeys(placer.made.values()), placer.inner))


class _Placer:
    def __init__(self, flat: read.Program, operations: Mapping[tuple[int, ...], Operation]):
        self.operations = operations
        self.readers, self.order = flat.readers, flat.order
        self.top: list[Node] = []
        self.home: dict[Value, list[Node]] = {}
        self.near: dict[Value, frozenset[str]] = {}
        self.roots: dict[Value, Value] = {}
        self.grids = Grids()
        self.made: dict[Value, Node] = {}
        self.counts: dict[str, int] = {}
        self.taken = {op.path for op in operations.values()}
        self.done: set[Equation] = set()
        self.inside: set[Equation] = set()  # templates
        self.indices: set[Value] = set()  # integers that depend on integers alone
        self.inner: set[Value] = set()  # carries and slices at the start of a turn
        self.refused = Refusals()

    # nodes

    def named(self, stem: str) -> str:
        """The next path ``stem_0``, ``stem_1``, ... that is not that of an operation: a parameter may be called so."""
        while True:
            number = self.counts.get(stem, 0)
            self.counts[stem] = number + 1
            if (path := f"{stem}_{number}") not in self.taken:
                return path

    def add(
        self, nodes: list[Node], kind: str, ins: list[Value], outs: list[Value], equations: list[Equation], **rest: Any
    ):
        """Makes a node; its path is that of the operation, or the nearest weights' common prefix and the kind."""
        op: Operation | None = rest.get("op")
        near = frozenset().union(*(self.near[v] for v in ins)) if ins else frozenset()
        if op is not None:
            path, near = op.path, frozenset([op.base])
        else:
            prefix = common_prefix(sorted(near))
            path = self.named(f"{prefix}/{kind}" if prefix else kind)
        source = next((e.source for e in equations if e.source), "")
        node = Node(kind, path, ins, outs, equations, source, **rest)
        nodes.append(node)
        for out in outs:
            self.near[out], self.home[out], self.made[out] = near, nodes, node
        return node

    def input(self, var: Value) -> None:
        if var.dtype == jnp.bool_ or (jnp.issubdtype(var.dtype, jnp.integer) and jnp.iinfo(var.dtype).bits >= 32):
            self.indices.add(var)
            self.add(self.top, "index", [], [var], [])
            return
        if not jnp.issubdtype(var.dtype, jnp.floating):
            raise ValueError(
                f"integer=True: an argument of dtype {var.dtype} has no grid; pass float arrays, indices in int32, masks in bool or int32, and fix "
                f"other integers and keys by functools.partial"
            )
        self.add(self.top, "input", [], [var], [])

    def need(self, var: Value, nodes: list[Node], reader: Equation | None) -> Value:
        """Returns ``var`` on a grid of its own: makes the table, or the constant, that it takes."""
        if not var.is_data:
            if not jnp.issubdtype(var.dtype, jnp.floating):
                raise self.error(reader, f"a constant of dtype {var.dtype} cannot be on a grid")
            out = Value(var.shape, var.dtype, True)
            self.add(nodes, "constant", [], [out], [], details={"value": var})
            return out
        if var in self.indices:
            raise self.error(
                reader, f"a value of dtype {var.dtype} has no grid: indices can only pick rows of a weight"
            )
        if var in self.made or var in self.inner:
            return var
        root = self.roots.get(var)
        if root is None:
            raise self.error(var.source or reader, "its result is read before it has a grid")
        self.add(self.home[root], "table", [root], [var], self._region(root, var))
        return var

    def _region(self, root: Value, out: Value) -> list[Equation]:
        found: dict[Equation, None] = {}
        todo = [out]
        while todo:
            var = todo.pop()
            if var is root or not var.is_data or var.source is None or var.source in found:
                continue
            found[var.source] = None
            todo += var.source.ins
        return sorted(found, key=lambda e: self.order[e])

    def error(self, equation: Equation | None, why: str) -> ValueError:
        """The error of rule (f)."""
        name = "this value" if equation is None else equation.name
        near = [self.near[v] for v in (() if equation is None else equation.ins) if v in self.near]
        paths = sorted(frozenset().union(*near))
        why += f" (it follows {', '.join(paths[:3])})" if paths else ""
        where = "" if equation is None or not equation.source else f" ({equation.source})"
        return ValueError(f"integer=True cannot place {name}{where}: {why}")

    # rules

    def run(self, equations: list[Equation], nodes: list[Node]) -> None:
        found = templates.find(equations, self.order, self.readers)
        for each in found.values():
            self.inside.update(each.equations)
        for equation in equations:
            if equation in found:
                self.tried(lambda e=equation: self.template(e, found[e], nodes), equation.outs, nodes)
            elif equation in self.inside or equation in self.done or not equation.is_data or self.is_dead(equation):
                continue
            else:
                self.tried(lambda e=equation: self.rule(e)(e, nodes), equation.outs, nodes)

    def tried(self, place: Callable[[], object], outs: list[Value], nodes: list[Node]) -> None:
        """Places something; or notes why not, and goes on as if ``outs`` were arguments: one error names all of it."""
        try:
            place()
        except ValueError as error:
            self.refused.add(str(error), str(error))
            for out in outs:
                if out not in self.made:
                    if not is_float(out):
                        self.indices.add(out)
                    self.add(nodes, "input" if is_float(out) else "index", [], [out], [])

    def is_dead(self, equation: Equation) -> bool:
        """Whether nothing reads what a plain equation makes."""
        is_plain = equation.name in TABULAR or equation.name in MOVES
        return is_plain and not any(v in self.readers for v in equation.outs)

    def rule(self, equation: Equation) -> Callable[[Equation, list[Node]], None]:
        """Returns the rule that takes an equation."""
        name = equation.name
        data = [v for v in equation.ins if v.is_data]
        if equation.call == "scan":
            return self.scan
        if equation.call is not None:
            raise self.error(equation, "of control flow, only scans over data have an integer form")
        if name in primitives.LOOKUPS and equation.address in self.operations:
            return self.lookup
        if self.indices.issuperset(data) and not any(is_float(v) for v in equation.outs):
            return self.index
        if name in _KINDS:
            return self.matmul
        if name in _SUMS:
            return self.sum
        is_choice = name == "select_n" and not self.is_tabular(equation)
        is_choice = is_choice and (not equation.ins[0].is_data or equation.ins[0] in self.indices)
        if name in ("concatenate", "stack") or is_choice:
            return self.unified
        if name in MOVES and not (name in TABULAR and data[0] in self.roots):
            return self.move
        if self.is_tabular(equation):
            return self.tabular
        if len(data) == 1 and is_affine(equation, data[0]):
            return self.affine
        if len(equation.ins) == 2 and name in _PAIRS:
            return self.pair
        return self.refuse

    def refuse(self, equation: Equation, nodes: list[Node]) -> None:
        del nodes
        sorts = ", ".join(f"{v.dtype}[{','.join(map(str, v.shape))}]" for v in equation.ins)
        raise self.error(
            equation,
            f"no integer form of it on {sorts} is known; write it as dots, sums, tables of one tensor, softmax or a "
            f"layer or RMS norm, or keep this part out of the function",
        )

    def template(self, equation: Equation, found: templates.Found, nodes: list[Node]) -> None:
        for made in found.before:
            self.order.setdefault(made, self.order[equation])
            self.rule(made)(made, nodes)
        ins = [self.need(found.x, nodes, equation)]
        if found.kept is not None and found.kept.is_data:
            ins += [found.kept, *found.integers]
        details: dict[str, Any] = {
            "axis": found.axis,
            "epsilon": found.epsilon,
            "is_centered": found.is_centered,
            "kept": found.kept,
        }
        chain = [] if found.gain is None else [found.gain]
        self.linear(found.kind, equation, list(found.equations), ins, nodes, chain=chain, details=details)

    def matmul(self, equation: Equation, nodes: list[Node]) -> None:
        op = self.operations[equation.address]
        ins = [self.need(v, nodes, equation) for v in equation.ins if v.is_data]
        axes = channels(equation) if len(ins) == 1 else None
        self.linear(_KINDS[equation.name], equation, [equation], ins, nodes, op=op, axes=axes)

    def index(self, equation: Equation, nodes: list[Node]) -> None:
        self.indices |= set(equation.outs)
        self.add(nodes, "index", [v for v in equation.ins if v.is_data], list(equation.outs), [equation])

    def lookup(self, equation: Equation, nodes: list[Node]) -> None:
        indices = [v for v in equation.ins[1:] if v.is_data]
        if not self.indices.issuperset(indices):
            raise self.error(equation, "rows of a weight are picked by integers that depend on integer arguments alone")
        op = self.operations[equation.address]
        self.add(nodes, "lookup", indices, list(equation.outs), [equation], op=op)

    def sum(self, equation: Equation, nodes: list[Node]) -> None:
        x = self.need(equation.ins[0], nodes, equation)
        self.linear("sum", equation, [equation], [x], nodes)

    def affine(self, equation: Equation, nodes: list[Node]) -> None:
        (x,) = (self.need(v, nodes, equation) for v in equation.ins if v.is_data)
        constant = next((v for v in equation.ins if not v.is_data), x)
        self.linear("affine", equation, [equation], [x], nodes, chain=[(equation, constant)])

    def linear(
        self, kind: str, last: Equation, equations: list[Equation], ins: list[Value], nodes: list[Node], **rest: Any
    ):
        """A node that ends in a sum: absorbs what follows, by constants that vary along ``axes`` at most (None: any)."""
        chain, axes = rest.pop("chain", []), rest.pop("axes", None)
        out = last.outs[0]
        while (following := self.follower(out, last)) is not None and is_affine(following, out):
            constant = next((v for v in following.ins if not v.is_data), out)
            if axes is not None and not constant.is_data and not axes.issuperset(varying(constant)):
                break
            chain.append((following, constant))
            equations.append(following)
            out, last = following.outs[0], following
        out, clips = self.clipped(out, last, equations)
        self.done |= set(equations)
        return self.add(nodes, kind, ins, [out], equations, chain=chain, clips=clips, **rest)

    def follower(self, out: Value, last: Equation) -> Equation | None:
        """The one equation that reads ``out``, in the same loop and in no template."""
        readers = self.readers.get(out, [])
        if len(readers) != 1 or readers[0] is None or readers[0].scope is not last.scope or readers[0] in self.inside:
            return None
        return readers[0]

    def clipped(self, out: Value, last: Equation, equations: list[Equation]) -> tuple[Value, list[tuple[str, Value]]]:
        """Absorbs relu and clips by scalars."""
        clips: list[tuple[str, Value]] = []
        while (following := self.follower(out, last)) is not None:
            bounds = bounds_of(following, out)
            if bounds is None:
                break
            clips += bounds
            equations.append(following)
            out, last = following.outs[0], following
        return out, clips

    def unified(self, equation: Equation, nodes: list[Node]) -> None:
        first = 1 if equation.name == "select_n" else 0
        ins = [self.need(v, nodes, equation) for v in equation.ins[first:]]
        kind = "select" if first else "concatenate"
        which = [v for v in equation.ins[:first] if v.is_data]
        self.add(nodes, kind, [*ins, *which], list(equation.outs), [equation])
        self.grids.unify(*ins, equation.outs[0])

    def move(self, equation: Equation, nodes: list[Node]) -> None:
        if any(v.is_data for v in equation.ins[1:]):
            raise self.error(equation, "only the first operand of a movement may depend on data")
        if not is_float(equation.outs[0]):
            raise self.error(equation, f"its result is {equation.outs[0].dtype}, which has no grid")
        if equation.name == "pad" and not _is_written(equation.ins[1], 0.0):
            raise self.error(equation, "only padding with zeros has a code")
        x = self.need(equation.ins[0], nodes, equation)
        self.add(nodes, "move", [x], list(equation.outs), [equation])
        self.grids.unify(x, *equation.outs)

    def is_tabular(self, equation: Equation) -> bool:
        """Whether an equation is elementwise in one tensor (or in what a region already makes of it) and in scalars."""
        if equation.name not in TABULAR:
            return False
        data = [v for v in equation.ins if v.is_data]
        roots = {self.roots.get(v, v) for v in data}
        out = equation.outs[0]
        return (
            len(roots) == 1
            and all(v.shape == out.shape for v in data)
            and all(math.prod(small_shape(v)) == 1 for v in equation.ins if not v.is_data)
        )

    def tabular(self, equation: Equation, nodes: list[Node]) -> None:
        (root,) = {self.roots.get(v, v) for v in equation.ins if v.is_data}
        self.need(root, nodes, equation)
        self.roots[equation.outs[0]] = root

    def pair(self, equation: Equation, nodes: list[Node]) -> None:
        kind = _PAIRS[equation.name]
        ins = [self.need(v, nodes, equation) for v in equation.ins]
        if kind == "product":
            self.linear(kind, equation, [equation], ins, nodes)
            return
        equations = [equation]
        out, clips = self.clipped(equation.outs[0], equation, equations)
        self.done |= set(equations)
        details = {"sign": -1 if equation.name == "sub" else 1}
        self.add(nodes, kind, ins, [out], equations, clips=clips, details=details)

    def scan(self, equation: Equation, nodes: list[Node]) -> None:
        loop = equation.loop
        assert loop is not None
        for var in loop.xs:
            if not var.is_data:
                why = f"it is over parameters or constants of shape {var.shape}; write the layers out in a Python loop"
                raise self.error(equation, why)
        for var in (*loop.inits, *loop.slices, *loop.ys):
            if not is_float(var):
                raise self.error(equation, f"it carries or scans {var.dtype} values, which have no grid; unroll it")
        moving = [i for i, (a, b) in enumerate(zip(loop.inits, loop.carries, strict=True)) if a is not b]
        inits = [self.need(loop.inits[i], nodes, equation) for i in moving]
        xs = [self.need(v, nodes, equation) for v in loop.xs]
        carries = [loop.carries[i] for i in moving]
        body: list[Node] = []
        for outer, inner in (*zip(inits, carries, strict=True), *zip(xs, loop.slices, strict=True)):
            self.near[inner], self.home[inner] = self.near[outer], body
            self.inner.add(inner)
            self.grids.unify(outer, inner)
        node = self.add(nodes, "scan", [*inits, *xs], [], [equation], loop=loop)
        node.body = body
        self.run(loop.equations, body)
        afters = [self.need(loop.afters[i], body, equation) for i in moving]
        ys = [self.need(v, body, equation) for v in loop.ys]
        count = len(loop.inits)
        node.outs = [*(equation.outs[i] for i in moving), *equation.outs[count:]]
        node.details = {"carries": carries, "afters": afters, "ys": ys, "count": len(moving)}
        for outer, inner, init in zip(node.outs, afters, inits, strict=False):
            self.grids.unify(init, inner, outer)
        for outer, inner in zip(node.outs[len(moving) :], ys, strict=True):
            self.grids.unify(inner, outer)
        for out, inner in zip(node.outs, (*afters, *ys), strict=True):
            self.near[out], self.home[out], self.made[out] = self.near[inner], nodes, node
        for i, var in enumerate(equation.outs[:count]):
            if i not in moving and var in self.readers:
                raise self.error(equation, "a value that it carries unchanged is read after it; read the value itself")


def _is_written(var: Value, value: float) -> bool:
    known = written_value(var)
    return known is not None and bool(np.all(known == value))
