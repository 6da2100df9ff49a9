"""A program evaluated with some of its inner values returned as well, and some of its operands exchanged.

Places are addresses of equations, so that they hold for the same function traced with other shapes. Inside a scan a value is
stacked over the turns, outermost first. Calls on the way to a place are read through; all others keep their own derivative.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from . import compat
from .evaluate import again
from .read import Equation, Program, Value


@dataclasses.dataclass(frozen=True, order=True)
class Place:
    """One operand or result of one equation.

    Attributes:
        address: of the equation.
        index: of the operand or result.
        is_operand: which of the two.
    """

    address: tuple[int, ...]
    index: int = 0
    is_operand: bool = False


def tapped(
    program: Program,
    args: Sequence[Any],
    places: Sequence[Place] = (),
    exchanged: Mapping[Place, Any] | None = None,
) -> tuple[list[Any], list[Any]]:
    """Returns the results of a program, and what is at ``places``.

    Args:
        program: from `lowbit.program.read` with at most ``jit`` inlined, so that derivatives are kept.
        args: by input.
        places: what to return besides, stacked over the turns of the loops it is in.
        exchanged: operands to put in the place of those that are there; in a loop, with a leading axis per loop, of
            its length or of length 1 (then every turn has the same).

    Raises:
        ValueError: for a place that the program has not, or that is inside a ``while``, ``cond`` or ``shard_map``.

    Example:
        >>> import jax
        >>> from .read import read
        >>> program = read(jax.make_jaxpr(lambda x: jnp.sin(x) * 2.0)(0.5), inlined=("jit",))
        >>> outs, inner = tapped(program, [0.0], [Place((0,))], {Place((1,), 1, True): jnp.float32(3.0)})
        >>> float(outs[0]), float(inner[0])
        (0.0, 0.0)
    """
    changes = dict(exchanged or {})
    run = _Run(frozenset(places), frozenset(changes))
    env = dict(zip(program.inputs, args, strict=True))
    outs, seen = run.body(program.equations, program.outs, env, changes)
    missing = [place for place in places if place not in seen]
    if missing or run.changed != set(changes):
        lost = missing or sorted(set(changes) - run.changed)
        raise ValueError(f"the program has nothing at {lost[0]}: it is not the one that the place was found in")
    return outs, [seen[place] for place in places]


class _Run:
    """One evaluation of a program in which values at places are seen, and operands there exchanged; scopes without any run as they are."""

    def __init__(self, places: frozenset[Place], changes: frozenset[Place]):
        self.places = places
        self.operands = changes
        self.changed: set[Place] = set()
        self.scopes = {p.address[:i] for p in (*places, *changes) for i in range(1, len(p.address))}
        self.at: dict[tuple[int, ...], list[Place]] = {}
        for place in (*places, *changes):
            self.at.setdefault(place.address, []).append(place)

    def body(
        self, equations: Sequence[Equation], outs: Sequence[Value], env: dict[Value, Any], changes: Mapping[Place, Any]
    ) -> tuple[list[Any], dict[Place, Any]]:
        seen: dict[Place, Any] = {}

        def get(value: Value) -> Any:
            return env.get(value, value.value)

        for equation in equations:
            values = [get(v) for v in equation.ins]
            here = self.at.get(equation.address, ())
            for place in here:
                if place.is_operand and place in self.places:
                    seen[place] = values[place.index]
                if place in changes:
                    self.changed.add(place)
                    old, new = equation.ins[place.index], changes[place]
                    shape = old.shape if new.ndim <= old.ndim else equation.outs[0].shape  # of a number, now an array
                    values[place.index] = jnp.broadcast_to(new, shape).astype(old.dtype)
            if equation.address in self.scopes:
                results, inner = self.call(equation, values, changes)
                seen.update(inner)
            else:
                results = again(equation, values)
            seen.update({p: results[p.index] for p in here if not p.is_operand})
            env.update(zip(equation.outs, results, strict=True))
        return [get(v) for v in outs], seen

    def call(
        self, equation: Equation, values: list[Any], changes: Mapping[Place, Any]
    ) -> tuple[Sequence[Any], dict[Place, Any]]:
        if equation.call in ("remat", "custom_jvp", "custom_vjp", "jit"):
            (body,) = equation.bodies
            return self.body(body.equations, body.outs, dict(zip(body.inputs, values, strict=True)), changes)
        if equation.call != "scan":
            raise ValueError(f"a value inside {equation.name} ({equation.source}) cannot be had: it is no scan")
        return self.scan(equation, values, changes)

    def scan(
        self, equation: Equation, values: list[Any], changes: Mapping[Place, Any]
    ) -> tuple[Sequence[Any], dict[Place, Any]]:
        loop = equation.loop
        assert loop is not None
        n_consts, n_carry = compat.scan_counts(equation.eqn)
        consts, init, xs = values[:n_consts], values[n_consts : n_consts + n_carry], values[n_consts + n_carry :]
        depth = len(equation.address)
        inside = {p: x for p, x in changes.items() if p.address[:depth] == equation.address}
        turned = {p: x for p, x in inside.items() if x.shape[0] != 1}
        fixed = {p: x[0] for p, x in inside.items() if x.shape[0] == 1}

        def step(carry: Any, slices: Any) -> tuple[Any, Any]:
            part, own = slices
            env = dict(zip(loop.body.inputs, [*consts, *carry, *part], strict=True))
            outs, seen = self.body(
                loop.equations, loop.body.outs, env, {**fixed, **dict(zip(turned, own, strict=True))}
            )
            return outs[:n_carry], (outs[n_carry:], [seen[p] for p in sorted(seen)])

        named: list[Place] = sorted(p for p in self.places if p.address[:depth] == equation.address)
        carry, (ys, inner) = compat.scan(equation.eqn, step, list(init), (list(xs), list(turned.values())))
        return [*carry, *ys], dict(zip(named, inner, strict=True))
