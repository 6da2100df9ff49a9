"""Programs: what is read of a jaxpr, and that evaluating it is calling the function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lowbit.program.evaluate import evaluate, turns
from lowbit.program.read import CALLS, read, spliced
from lowbit.program.spellings import SPELLINGS, spelling

X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)


@jax.custom_vjp
def _own(x):
    return jnp.sin(x)


_own.defvjp(lambda x: (_own(x), x), lambda x, g: (g * jnp.cos(x),))


def _calls(w, x):
    h = jax.checkpoint(jax.jit(lambda x: jax.nn.relu(x) * w))(x)
    h = lax.cond(x[0, 0] > 0, lambda h: h + 1, lambda h: h - 1, h)
    h = lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * w), (0, h))[1]
    carry, ys = lax.scan(lambda c, row: (c * w + row, c.sum()), h[0], h, reverse=True)
    return _own(carry), ys


@pytest.mark.parametrize("inlined", [(), ("jit",), CALLS])
def test_evaluating_a_program_is_calling_the_function(inlined):
    w = jnp.float32(0.5)
    program = read(jax.make_jaxpr(_calls)(w, X), inlined=inlined)
    for found, wanted in zip(evaluate(program, [w, X]), _calls(w, X), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_calls_are_inlined_as_far_as_asked():
    closed = jax.make_jaxpr(_calls)(0.5, X)
    assert {e.call for e in read(closed, inlined=()).equations} >= {"remat", "cond", "while", "scan", "custom_vjp"}
    assert {e.call for e in read(closed).equations} == {None, "cond", "while", "scan"}


def test_data_is_what_depends_on_inputs_that_are_not_fixed():
    program = read(jax.make_jaxpr(lambda w, x: (jnp.tanh(w) @ w, x + w, jnp.arange(3.0)))(X[:, :3], X[:, :3]), fixed=1)
    assert [v.is_data for v in program.outs] == [False, True, False]
    assert [v.is_data for v in program.inputs] == [False, True]


def test_the_body_of_a_scan_takes_from_outside_what_no_turn_changes():
    def fn(w, x):
        return lax.scan(lambda total, row: (total + row * w, row @ x[0]), jnp.zeros(4), x)

    program = read(jax.make_jaxpr(fn)(jnp.float32(2), X), fixed=1)
    (scan,) = (e for e in program.equations if e.call == "scan")
    loop, inside = scan.loop, {v for e in scan.loop.equations for v in e.ins}
    assert loop.length == 3
    assert program.inputs[0] in inside
    assert inside >= {scan.ins[0], *loop.carries, *loop.slices}
    assert scan in program.readers[program.inputs[1]]
    assert loop.equations[0].address[:2] == (*scan.address, 0)


def test_scans_are_written_out_turn_by_turn():
    def fn(c, xs):
        return lax.scan(lambda c, x: (c + x, c * x), c, xs, reverse=True)

    program = read(jax.make_jaxpr(fn)(X[0], X))

    def unrolled(equation, values):
        return turns(equation, values, evaluate, lambda x, i: x[i], jnp.stack)

    for found, wanted in zip(evaluate(program, [X[0], X], {"scan": unrolled}), fn(X[0], X), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_readers_of_a_long_program_are_found_once():
    def fn(x):
        for _ in range(300):
            x = jnp.sin(x)
        jnp.cos(x)  # nothing reads it
        return x

    program = read(jax.make_jaxpr(fn)(X))
    assert all(len(program.readers[v]) == 1 for e in program.equations[:-2] for v in e.outs)
    assert program.readers[program.outs[0]] == [None]


def test_new_equations_read_old_values():
    program = read(jax.make_jaxpr(lambda x: x * 2)(X))
    more = spliced(lambda y: y.T + 1, program.outs)
    env = dict(zip([*program.inputs, *program.outs], [X, 2 * X], strict=True))
    np.testing.assert_array_equal(evaluate(more, [env[v] for v in more.inputs])[0], 2 * X.T + 1)


def _spelled(x, n):
    return (
        jnp.stack([x, -x], 1),
        jnp.unstack(x, axis=1)[2],
        jnp.split(x, [1, 3], 1)[1],
        jnp.tile(x, (2, 3)),
        lax.cumsum(n, 1),
        lax.cumsum(n, 0, reverse=True),
    )


def test_simpler_spellings_have_the_same_numbers():
    x, n = np.asarray(X), np.arange(12, dtype=np.int32).reshape(3, 4)
    program = read(jax.make_jaxpr(_spelled)(x, n))
    assert {e.name for e in program.equations} >= set(SPELLINGS)
    seen = []

    def spelled(equation, values):
        seen.append(equation.name)
        return evaluate(spelling(equation), values)

    found = evaluate(program, [x, n], dict.fromkeys(SPELLINGS, spelled))
    wanted = [
        np.stack([x, -x], 1),
        x[:, 2],
        x[:, 1:3],
        np.tile(x, (2, 3)),
        np.cumsum(n, 1),
        np.cumsum(n[::-1], 0)[::-1],
    ]
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    assert set(seen) == set(SPELLINGS)
