"""Softmax and normalizations, found by comparing with functions traced by the same jax.

A template is a function of one array and of constants (an epsilon, a gain). It is traced for the shape at hand and matched
backwards from its result. Equal means: the same primitives with the same parameters on the same operands, written
constants of the same value. Reshapes and broadcasts that only add or spread axes of length 1 are compared by where they
put each axis, so that ``keepdims=True`` and ``jnp.expand_dims`` are the same.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowbit.core.checks import is_traced
from lowbit.interpret.trace import trace
from lowbit.program import compat, read
from lowbit.program.read import Equation, Value

from .flat import flatten, small_shape

Template = Callable[..., Any]


def _softmax(x, axis):
    return jax.nn.softmax(x, axis)


def _plain_softmax(x, axis):
    e = jnp.exp(x - jnp.max(x, axis, keepdims=True))
    return e / jnp.sum(e, axis, keepdims=True)


def _mean(x, axis):
    return jnp.mean(x, axis, keepdims=True)


def _of_var(x, axis):
    return jnp.var(x, axis, keepdims=True)


def _of_squares(x, axis):
    return _mean(jnp.square(x - _mean(x, axis)), axis)


def _fast(x, axis):
    """flax's: E[x^2] - E[x]^2, kept from going below zero."""
    squares = _mean(jnp.square(x), axis)
    return jnp.maximum(0.0, squares - jnp.square(_mean(x, axis)))


def _with_zero(x, axis):
    del axis
    return x - jnp.zeros_like(x)


def _as_it_is(x, axis):
    del axis
    return x


def _centered(x, axis):
    return x - _mean(x, axis)


def _squares(x, axis):
    return _mean(jnp.square(x), axis)


_STATISTICS = (
    (_centered, _of_var), (_centered, _of_squares), (_centered, _fast), (_as_it_is, _squares), (_with_zero, _squares),
)  # fmt: skip


def _by_root(x, eps, gain, axis, centered, spread):
    del gain
    return centered(x, axis) / jnp.sqrt(spread(x, axis) + eps)


def _by_inverse(x, eps, gain, axis, centered, spread):
    del gain
    return centered(x, axis) * lax.rsqrt(spread(x, axis) + eps)


def _by_gain(x, eps, gain, axis, centered, spread):
    return centered(x, axis) * (lax.rsqrt(spread(x, axis) + eps) * gain)


@dataclasses.dataclass(frozen=True)
class Found:
    """A template found in a program.

    Attributes:
        kind: ``softmax`` or ``norm``.
        x: what it reads.
        axis: along which.
        equations: its equations, in program order.
        is_centered: whether the mean is subtracted (a norm).
        epsilon: of a norm.
        gain: multiplied inside a norm, or None.
        mask: of a softmax: the ``select_n`` or ``add`` that puts `MASKED` or less where ``x`` is not read, or None.
    """

    kind: str
    x: Value
    axis: int
    equations: tuple[Equation, ...]
    is_centered: bool = False
    epsilon: Value | None = None
    gain: Value | None = None
    mask: Equation | None = None


MASKED = -1e4
"""A constant up to here in front of a softmax is a mask: no grid that holds it would have a second level for the scores."""


@functools.lru_cache(maxsize=512)
def _traced(
    template: Template, shape: tuple[int, ...], dtype: str, axis: int, pair: Any
) -> tuple[read.Program, list[Value]]:
    x = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
    if pair is None:
        flat = flatten(trace(lambda p, x: template(x, axis), {}, (x,), {}))
        return flat, []
    gain = jax.ShapeDtypeStruct(tuple(n if i == axis else 1 for i, n in enumerate(shape)), jnp.dtype(dtype))
    constants = {"eps": jax.ShapeDtypeStruct((), jnp.dtype(dtype)), "gain": gain}
    flat = flatten(trace(lambda p, x: template(x, p["eps"], p["gain"], axis, *pair), constants, (x,), {}))
    return flat, flat.inputs[:2]


def find(root: Equation, order: dict[Equation, int], readers: dict[Value, list[Any]]) -> Found | None:
    """Returns the template whose result ``root`` makes, or None.

    Args:
        root: the last equation.
        order: of the equations.
        readers: who reads each value.
    """
    if (
        root.name not in ("div", "mul")
        or not root.outs[0].is_data
        or not jnp.issubdtype(root.outs[0].dtype, jnp.floating)
    ):
        return None
    shape, dtype = root.outs[0].shape, str(root.outs[0].dtype)
    for axis in _reduced(root):
        for template, pair in _candidates(root.name):
            try:
                flat, constants = _traced(template, shape, dtype, axis, pair)
            except TypeError:  # a dtype that this template does not take
                continue
            match = _Match(flat.inputs[-1], constants)
            if not match.same(flat.outs[0], root.outs[0]):
                continue
            equations = sorted(match.equations, key=lambda e: order[e])
            if _is_closed(equations, root, readers):
                x = match.bound[flat.inputs[-1]]
                if pair is None:
                    mask = _mask(x, equations, readers)
                    if mask is None:
                        return Found("softmax", x, axis, tuple(equations))
                    (x,) = (v for v in mask.ins if v.is_data)
                    return Found("softmax", x, axis, (mask, *equations), mask=mask)
                eps, gain = (match.bound.get(c) for c in constants)
                return Found("norm", x, axis, tuple(equations), pair[0] is _centered, eps, gain)
    return None


_STARTS = ("dot_general", "conv_general_dilated", "gather", "scan")
"""In no template: what they make is read by one at most."""


def _reduced(root: Equation) -> list[int]:
    """The axes that some sum before ``root`` is along: those of templates worth tracing, each of which has one."""
    found: set[int] = set()
    seen, todo = {root}, [root]
    while todo:
        equation = todo.pop()
        if equation.name == "reduce_sum" and len(equation.eqn.params["axes"]) == 1:
            found.update(equation.eqn.params["axes"])
        sources = [v.source for v in equation.ins if v.is_data and v.source is not None]
        fresh = [s for s in sources if s not in seen and s.name not in _STARTS]
        seen.update(fresh)
        todo += fresh
    return sorted(axis for axis in found if axis < len(root.outs[0].shape))


def _mask(x: Value, equations: list[Equation], readers: dict[Value, list[Any]]) -> Equation | None:
    """The mask that makes ``x``, for these alone.

    A selection by a constant predicate between data and `MASKED` or less, or the sum of data and a constant of 0 and of
    `MASKED` or less.
    """
    if x.source is not None and x.source.name == "add":
        return _added_mask(x, x.source, equations, readers)
    select = x.source
    if select is None or select.name != "select_n" or len(select.ins) != 3 or select.ins[0].is_data:
        return None
    constants = [v for v in select.ins[1:] if not v.is_data]
    if len(constants) != 1 or any(reader not in equations for reader in readers.get(x, [])):
        return None
    value = written_value(constants[0])
    return select if value is not None and bool(np.all(value <= MASKED)) else None


def _added_mask(x: Value, add: Equation, equations: list[Equation], readers: dict[Value, list[Any]]) -> Equation | None:
    constants = [v for v in add.ins if not v.is_data]
    value = _whole_value(constants[0]) if len(constants) == 1 else None
    if value is None or not bool(np.any(value <= MASKED)) or any(r not in equations for r in readers.get(x, [])):
        return None
    if not bool(np.all((value <= MASKED) | (value == 0))):
        raise ValueError(
            f"integer=True: the constant added in front of a softmax ({add.source}) masks (it holds {float(np.min(value))}) and "
            f"biases at once; add the bias alone, and mask by another sum or by jnp.where"
        )
    return add


def is_kept(mask: Equation, get: Callable[[Value], Any]) -> Any:
    """Returns where a masked softmax takes data; ``get`` has the values of constants."""
    if mask.name == "add":
        (added,) = (v for v in mask.ins if not v.is_data)
        return get(added) > MASKED
    predicate = get(mask.ins[0])
    return predicate if mask.ins[2].is_data else ~predicate


def _candidates(name: str) -> Iterator[tuple[Template, Any]]:
    if name == "div":
        yield _softmax, None
        yield _plain_softmax, None
    for pair in _STATISTICS:
        for template in (_by_root,) if name == "div" else (_by_inverse, _by_gain):
            yield template, pair


def _is_closed(equations: list[Equation], root: Equation, readers: dict[Value, list[Any]]) -> bool:
    """Whether nothing else reads what is inside."""
    inside = set(equations)
    return all(r in inside for e in equations if e is not root for out in e.outs for r in readers.get(out, []))


_IGNORED = ("sharding", "out_sharding", "accuracy", "precision", "weak_type")


class _Match:
    def __init__(self, x: Value, constants: list[Value]):
        self.x, self.constants = x, set(constants)
        self.bound: dict[Value, Value] = {}
        self.equations: dict[Equation, None] = {}
        self.done: dict[Value, Value] = {}

    def same(self, t: Value, u: Value) -> bool:
        if t in self.done:
            return self.done[t] is u
        found = self._same(t, u)
        if found:
            self.done[t] = u
        return found

    def _same(self, t: Value, u: Value) -> bool:
        if t is self.x:
            return self._bind(t, u) and u.is_data
        if not t.is_data:
            return not u.is_data and self._same_constant(t, u)
        if not u.is_data:
            return False
        (t, t_map, _), (u, u_map, passed) = _unspread(t), _unspread(u)
        if t_map != u_map:
            return False
        if t is self.x:
            ok = self._bind(t, u)
        elif t.source is None or u.source is None:
            return False
        else:
            ok = self._same_equation(t.source, u.source)
        if ok:
            self.equations |= dict.fromkeys(passed)
        return ok

    def _bind(self, t: Value, u: Value) -> bool:
        return self.bound.setdefault(t, u) is u

    def _same_equation(self, t: Equation, u: Equation) -> bool:
        if _word(t) != _word(u) or len(t.ins) != len(u.ins) or len(t.outs) != len(u.outs):
            return False
        if {k: v for k, v in t.eqn.params.items() if k not in (*_IGNORED, "y")} != {
            k: v for k, v in u.eqn.params.items() if k not in (*_IGNORED, "y")
        }:
            return False
        orders = [list(u.ins)]
        if t.name in ("add", "mul", "max", "min"):
            orders.append(list(reversed(u.ins)))
        for ins in orders:
            saved = dict(self.bound), dict(self.equations), dict(self.done)
            if all(self.same(a, b) for a, b in zip(t.ins, ins, strict=True)):
                self.equations[u] = None
                return True
            self.bound, self.equations, self.done = saved
        return False

    def _same_constant(self, t: Value, u: Value) -> bool:
        if (inner := _written(t)) in self.constants:
            if math.prod(small_shape(t)) == 1 and math.prod(small_shape(u)) != 1:
                return False
            return self._bind(inner, u)
        a, b = written_value(t), written_value(u)
        return a is not None and b is not None and np.array_equal(a, b, equal_nan=True)


def _word(equation: Equation) -> str:
    if equation.name == "integer_pow" and equation.eqn.params["y"] == 2:
        return "square"
    return equation.name


def _written(var: Value) -> Value:
    """What a constant was before it was spread."""
    while var.source is not None and var.source.name in ("broadcast_in_dim", "reshape"):
        var = var.source.ins[0]
    return var


def written_value(var: Value) -> Any:
    """Returns the value of a constant that depends on no parameter, before it was spread; None for others."""
    var = _written(var)
    if var.source is None:
        return None if var.value is None or is_traced(var.value) else np.asarray(var.value)
    values = [written_value(v) for v in var.source.ins]
    if any(v is None for v in values):
        return None
    with jax.ensure_compile_time_eval():
        return np.asarray(compat.rebind(var.source.eqn, [jnp.asarray(v) for v in values])[0])


def _whole_value(var: Value) -> Any:
    """The value of a constant that depends on no parameter, of its own shape; None for others."""
    if var.source is None:
        return None if var.value is None or is_traced(var.value) else np.asarray(var.value)
    values = [_whole_value(v) for v in var.source.ins]
    if any(v is None for v in values):
        return None
    with jax.ensure_compile_time_eval():
        found = compat.rebind(var.source.eqn, [jnp.asarray(v) for v in values])
    return np.asarray(found[var.source.outs.index(var)])


def _unspread(var: Value) -> tuple[Value, tuple[int, ...], list[Equation]]:
    """The value before axes of length 1 were added or spread, where its longer axes went, and the equations passed."""
    where, passed = tuple(range(len(var.shape))), []
    start = var
    while var.source is not None and len(var.source.outs) == 1 and var.source.ins and var.source.ins[0].is_data:
        source, inner = var.source, var.source.ins[0]
        if source.name == "broadcast_in_dim":
            step = dict(enumerate(source.eqn.params["broadcast_dimensions"]))
        elif source.name in ("reshape", "expand_dims", "squeeze"):
            longer = [[i for i, n in enumerate(v.shape) if n != 1] for v in (inner, var)]
            if [inner.shape[i] for i in longer[0]] != [var.shape[i] for i in longer[1]]:
                break
            step = dict(zip(*longer, strict=True))
        elif source.name in ("stop_gradient", "copy") or (
            source.name == "convert_element_type" and inner.dtype == var.dtype
        ):
            step = dict(enumerate(range(len(inner.shape))))
        else:
            break
        where = tuple(where[step[i]] if i in step else -1 for i in range(len(inner.shape)))
        passed.append(source)
        var = inner
    axes = tuple(w for i, w in enumerate(where) if var.shape[i] != 1)
    return var, axes, passed if var is not start else []
