"""Loops and branches of a program of which products are put together with what follows them, for `lowbit.interpret.fuse`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from lowbit.packed.arena import Placed, array_of
from lowbit.program import compat
from lowbit.program.read import Equation, Program

Run = Callable[[Program, Sequence[Any]], list[Any]]
"""From a body and the values of its inputs to its results."""


def _scan(run: Run, equation: Equation, values: Sequence[Any]) -> Sequence[Any]:
    (body,) = equation.bodies
    n_consts, n_carry = compat.scan_counts(equation.eqn)
    consts = values[:n_consts]

    def turn(carry: Any, slices: Any) -> tuple[Any, Any]:
        outs = run(body, [*consts, *carry, *slices])
        return outs[:n_carry], outs[n_carry:]

    moving = [array_of(x) for x in values[n_consts:]]
    carry, ys = compat.scan(equation.eqn, turn, moving[:n_carry], moving[n_carry:])
    return [*carry, *ys]


def _while(run: Run, equation: Equation, values: Sequence[Any]) -> Sequence[Any]:
    condition, body = equation.bodies
    n_cond, n_body = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    before, inside = values[:n_cond], values[n_cond : n_cond + n_body]
    carry = [array_of(x) for x in values[n_cond + n_body :]]
    return lax.while_loop(
        lambda carry: run(condition, [*before, *carry])[0],
        lambda carry: run(body, [*inside, *carry]),
        carry,
    )


def _cond(run: Run, equation: Equation, values: Sequence[Any]) -> Sequence[Any]:
    index, *rest = values
    index = array_of(index)
    index = index.astype(jnp.int32) if index.dtype == jnp.bool_ else index

    def branch(body: Program, operands: Sequence[Any]) -> Any:
        given = iter(operands)
        return run(body, [x if isinstance(x, Placed) else next(given) for x in rest])

    branches = [functools.partial(branch, body) for body in equation.bodies]
    return lax.switch(index, branches, [x for x in rest if not isinstance(x, Placed)])


CALLS = {"scan": _scan, "while": _while, "cond": _cond}
"""By the kind of a call: ``(run, equation, values) -> results``."""
