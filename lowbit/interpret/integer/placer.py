"""Where a placement stands: what is placed, on which grids, and what a kind may ask and add while it is.

A kind of `lowbit.interpret.integer.ops` says which equations are its own and makes their nodes by what is here.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import jax.numpy as jnp

from lowbit.core.paths import common_prefix
from lowbit.interpret.operations import Operation
from lowbit.interpret.refusals import Refusals
from lowbit.program import read
from lowbit.program.read import Equation, Value

from . import templates
from .absorb import bounds_of, is_affine, is_float, varying
from .grids import Grids
from .nodes import MOVES, TABULAR, Node


class Rule(Protocol):
    """What places the equations of one kind: `lowbit.interpret.integer.kind.Kind`."""

    takes_loops: ClassVar[bool]

    def takes(self, equation: Equation, placer: "Placer") -> bool:
        """Returns whether an equation is of this kind."""
        ...

    def place(self, equation: Equation, placer: "Placer", nodes: list[Node]) -> None:
        """Makes its node."""
        ...

    def supply(self, var: Value, placer: "Placer", nodes: list[Node]) -> Value | None:
        """Returns a value on a grid of its own, or None."""
        ...


class Placer:
    """A placement that is being made.

    Args:
        flat: the program.
        operations: its dots, convolutions and look-ups by address.
        rules: by kind, in the order in which they are asked.
    """

    def __init__(self, flat: read.Program, operations: Mapping[tuple[int, ...], Operation], rules: Mapping[str, Rule]):
        self.operations, self.rules = operations, rules
        self.readers, self.order = flat.readers, flat.order
        self.top: list[Node] = []
        self.home: dict[Value, list[Node]] = {}
        self.near: dict[Value, frozenset[str]] = {}
        self.roots: dict[Value, Value] = {}
        self.grids = Grids()
        self.maker: dict[Value, Node] = {}
        self.counts: dict[str, int] = {}
        self.taken = {op.path for op in operations.values()}
        self.done: set[Equation] = set()
        self.templates: dict[Equation, templates.Match] = {}
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
    ) -> Node:
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
            self.near[out], self.home[out], self.maker[out] = near, nodes, node
        return node

    def input(self, var: Value) -> None:
        """Makes the node of an argument."""
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
        if var in self.indices:
            raise self.error(
                reader, f"a value of dtype {var.dtype} has no grid: indices can only pick rows of a weight"
            )
        if var in self.maker or var in self.inner:
            return var
        if not var.is_data and not is_float(var):
            raise self.error(reader, f"a constant of dtype {var.dtype} cannot be on a grid")
        for rule in self.rules.values():
            if (supplied := rule.supply(var, self, nodes)) is not None:
                return supplied
        raise self.error(var.source or reader, "its result is read before it has a grid")

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
        """Places equations, in order, as nodes of a program or of a loop."""
        here = templates.find(equations, self.order, self.readers)
        self.templates.update(here)
        for each in here.values():
            self.inside.update(each.equations)
        for equation in equations:
            if equation in here:
                rule = self.rules[here[equation].kind]
                self.tried(lambda e=equation, rule=rule: rule.place(e, self, nodes), equation.outs, nodes)
            elif equation in self.inside or equation in self.done or not equation.is_data or self.is_dead(equation):
                continue
            else:
                self.tried(lambda e=equation: self.place(e, nodes), equation.outs, nodes)

    def place(self, equation: Equation, nodes: list[Node]) -> None:
        """Makes the node of an equation, by the first kind that takes it.

        Raises:
            ValueError: where none does (rule f).
        """
        is_call = equation.call is not None
        for rule in self.rules.values():
            if rule.takes_loops == is_call and rule.takes(equation, self):
                return rule.place(equation, self, nodes)
        if is_call:
            raise self.error(equation, "of control flow, only scans over data have an integer form")
        sorts = ", ".join(f"{v.dtype}[{','.join(map(str, v.shape))}]" for v in equation.ins)
        raise self.error(
            equation,
            f"no integer form of it on {sorts} is known; write it as dots, sums, tables of one tensor, softmax or a "
            f"layer or RMS norm, or keep this part out of the function",
        )

    def tried(self, place: Callable[[], object], outs: list[Value], nodes: list[Node]) -> None:
        """Places something; or notes why not, and goes on as if ``outs`` were arguments: one error names all of it."""
        try:
            place()
        except ValueError as error:
            self.refused.add(str(error), str(error))
            for out in outs:
                if out not in self.maker:
                    if not is_float(out):
                        self.indices.add(out)
                    self.add(nodes, "input" if is_float(out) else "index", [], [out], [])

    def is_dead(self, equation: Equation) -> bool:
        """Whether nothing reads what a plain equation makes."""
        is_plain = equation.name in TABULAR or equation.name in MOVES
        return is_plain and not any(v in self.readers for v in equation.outs)

    def linear(
        self, kind: str, last: Equation, equations: list[Equation], ins: list[Value], nodes: list[Node], **rest: Any
    ) -> Node:
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
