"""Inner values of a program, and operands exchanged: written out by hand, with the model's own derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lowbit.program.read import read
from lowbit.program.taps import Place, tapped
from tests.values import normal


@jax.custom_jvp
def _odd(x):
    return jnp.sin(x) * 2.0


_odd.defjvp(lambda x, t: (_odd(x[0]), 5.0 * t[0]))


def _fn(w, x):
    def outer(c, w):
        def inner(c, w):
            return jnp.tanh(c @ w), c.sum()

        return jax.checkpoint(lambda c: lax.scan(inner, c, w))(c)

    return _odd(lax.scan(outer, x, w)[0])


def _program(w, x):
    return read(jax.make_jaxpr(_fn)(w, x), fixed=1, inlined=("jit",))


def _places(program, name):
    found = []
    todo = list(program.equations)
    while todo:
        equation = todo.pop(0)
        found += [equation.address] if equation.name == name else []
        if equation.call is not None:
            todo += [e for body in equation.bodies for e in body.equations]
    return found


def test_values_inside_loops_are_stacked():
    w, x = normal(0, 2, 3, 4, 4), normal(1, 5, 4)
    program = _program(w, x)
    (dot,), (sine,) = _places(program, "dot_general"), _places(program, "sin")
    outs, (made, read_, inner) = jax.jit(
        lambda w, x: tapped(program, [w, x], [Place(dot), Place(dot, 0, is_operand=True), Place(sine)])
    )(w, x)
    c, sums, carries = np.asarray(x, np.float64), [], []
    for i in range(2):
        for j in range(3):
            carries.append(c)
            sums.append(c @ np.asarray(w[i, j], np.float64))
            c = np.tanh(sums[-1])
    np.testing.assert_allclose(made, np.reshape(sums, (2, 3, 5, 4)), atol=1e-5)
    np.testing.assert_allclose(read_, np.reshape(carries, (2, 3, 5, 4)), atol=1e-5)
    np.testing.assert_allclose(inner, np.sin(c), atol=1e-5)
    np.testing.assert_allclose(outs[0], 2 * np.sin(c), atol=1e-5)


def test_operands_are_exchanged_by_turn_or_for_all():
    w, x = normal(0, 2, 3, 4, 4), normal(1, 5, 4)
    program = _program(w, x)
    (dot,) = _places(program, "dot_general")
    other = normal(2, 2, 1, 4, 4)
    outs, _ = tapped(program, [w, x], (), {Place(dot, 1, is_operand=True): other})
    c = np.asarray(x, np.float64)
    for i in range(2):
        for _ in range(3):
            c = np.tanh(c @ np.asarray(other[i, 0], np.float64))
    np.testing.assert_allclose(outs[0], 2 * np.sin(c), atol=1e-5)


def test_the_model_s_own_derivative_is_kept_where_nothing_inside_is_asked_for():
    w, x = normal(0, 2, 3, 4, 4), normal(1, 5, 4)
    program = _program(w, x)
    (dot,) = _places(program, "dot_general")
    want = jax.grad(lambda w: _fn(w, x).sum())(w)
    got = jax.grad(lambda w: tapped(program, [w, x], [Place(dot)])[0][0].sum())(w)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_had_is_said():
    w, x = normal(0, 2, 3, 4, 4), normal(1, 5, 4)
    with pytest.raises(ValueError, match="nothing at"):
        tapped(_program(w, x), [w, x], [Place((99,))])
    branch = read(jax.make_jaxpr(lambda x: lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x))(x), inlined=("jit",))
    (address,) = _places(branch, "sin")
    with pytest.raises(ValueError, match="cannot be had"):
        tapped(branch, [x], [Place(address)])
