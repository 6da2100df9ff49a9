"""What becomes of a public model: bound, simulated, executed, differentiated, and as a full-integer plan."""

import dataclasses
import functools
import re
import time
from typing import Any

import jax
import jax.numpy as jnp

import lowbit as lb

from .case import Case

RULES = {"**": "w8,a8"}


@dataclasses.dataclass
class Line:
    """What became of one model. A difference is the largest one, over the largest magnitude of the result.

    Attributes:
        bound: "" where it binds, else the error, or why it was not run.
        help: rules that had to be said beside `RULES` for it to bind.
        rows: operations.
        quantized: those that are quantized.
        native: those that a native kernel takes.
        difference: of `execute` from `simulate`, each one compiled program.
        op_by_op: the same, every equation a program of its own, so that no compiler fuses; None where ``difference`` is 0.
        error: of `simulate` from the float model.
        gradients: cosine of a simulation's gradients to the float model's; None where there are none.
        gradients_are: "finite", or what they are else.
        integer: "" where ``integer=True`` binds, else its refusal.
        integer_difference: of `execute` from `simulate` on the full-integer plan; None where there is none.
        seconds: of processor time: of bind, of bind with ``integer=True``, and of everything.
    """

    bound: str = ""
    help: dict[str, str] = dataclasses.field(default_factory=dict)
    rows: int = 0
    quantized: int = 0
    native: int | None = None
    difference: float | None = None
    op_by_op: float | None = None
    error: float | None = None
    gradients: float | None = None
    gradients_are: str | None = None
    integer: str | None = None
    integer_difference: float | None = None
    seconds: tuple[float, ...] = ()


def look(case: Case, *, is_bound_only: bool = False) -> Line:
    """Returns what becomes of a model; `Line.bound` says so where it cannot be bound."""
    line, fn, start = Line(help=dict(case.rules)), functools.partial(case.fn), time.process_time()
    rules = {**case.rules, **RULES}
    try:
        plan = lb.bind(fn, rules, case.params, *case.args)
    except ValueError as error:
        line.bound = said(error)
        return line
    line.rows, line.quantized, bound = len(plan), len(plan.quantized), time.process_time()
    whole = None
    try:
        whole, line.integer = lb.bind(fn, rules, case.params, *case.args, integer=True), ""
    except ValueError as error:
        line.integer = said(error)
    seconds = [bound - start, time.process_time() - bound]
    if not is_bound_only:
        _served(line, fn, plan, case)
        if whole is not None:
            line.integer_difference = _pair(fn, whole, case)[0]
    line.seconds = tuple(round(each, 2) for each in (*seconds, time.process_time() - start))
    return line


def said(error: Exception) -> str:
    """Returns the text of an error on one line, without the rules that it proposes."""
    text = " ".join(f"{error}".split("\n\n")[0].split())
    return f"{type(error).__name__}: {text}"[:600]


def _served(line: Line, fn: Any, plan: Any, case: Case) -> None:
    line.difference, got, qstate, qparams = _pair(fn, plan, case)
    if line.difference:
        line.op_by_op = _pair(fn, plan, case, is_jitted=False)[0]
    line.error = difference(jax.jit(fn)(case.params, *case.args), got)
    told = str(lb.explain(fn, plan, qparams, *case.args)).splitlines()
    paths = {re.escape(row.path) for row in plan.quantized}
    line.native = sum(bool(re.match(rf"(?:{'|'.join(paths)})\s+cpu\b", text)) for text in told)
    want = _gradients(fn, case)
    found = _gradients(lambda p, *args: lb.simulate(fn, plan, custom_vjp="body")(p, qstate, *args), case)
    if not all(bool(jnp.all(jnp.isfinite(g))) for g in found):
        line.gradients_are = (
            "not finite" if all(bool(jnp.all(jnp.isfinite(g))) for g in want) else "not finite in float"
        )
    else:
        line.gradients_are, line.gradients = "finite", _cosine(want, found)


def _pair(fn: Any, plan: Any, case: Case, *, is_jitted: bool = True) -> tuple[float, Any, Any, Any]:
    """The difference of a plan's execution from its simulation, the simulated result, the state and what was packed."""
    qstate = lb.init(fn, plan, case.params, *case.args)
    qparams = lb.pack(plan, case.params, qstate)
    with jax.disable_jit(not is_jitted):
        got = lb.simulate(fn, plan, custom_vjp="body")(case.params, qstate, *case.args)
        served = lb.execute(fn, plan)(qparams, *case.args)
    return difference(got, served), got, qstate, qparams


def difference(want: Any, got: Any) -> float:
    """Returns the largest difference of two trees of arrays, each over its largest magnitude; infinite where NaN differ."""
    found = [0.0]
    for a, b in zip(_floats(want), _floats(got), strict=True):
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        off = jnp.where((a == b) | (jnp.isnan(a) & jnp.isnan(b)), 0.0, jnp.abs(a - b))
        found.append(float(jnp.max(off, initial=0.0) / jnp.maximum(jnp.max(jnp.abs(a), initial=0.0), 1e-30)))
    return max(each if each == each else float("inf") for each in found)


def _floats(tree: Any) -> list[Any]:
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


def _gradients(fn: Any, case: Case) -> list[Any]:
    def loss(params: Any) -> Any:
        return sum(jnp.sum(jnp.sin(x.astype(jnp.float32))) for x in _floats(fn(params, *case.args)))

    quickly = {"xla_llvm_disable_expensive_passes": True}  # nobody compares their last bits
    return _floats(jax.jit(jax.grad(loss, allow_int=True), compiler_options=quickly)(case.params))


def _cosine(a: list[Any], b: list[Any]) -> float | None:
    if not a:
        return None
    one, other = (jnp.concatenate([x.astype(jnp.float32).ravel() for x in each]) for each in (a, b))
    norms = jnp.linalg.norm(one) * jnp.linalg.norm(other)
    return round(float(one @ other / norms), 4) if norms > 0 else None
