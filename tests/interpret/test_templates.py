"""Softmax and norms are found however they are written: what is found is compared with their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lowbit.interpret.integer import templates
from lowbit.interpret.integer.flat import flatten
from lowbit.interpret.trace import trace
from lowbit.program.evaluate import again
from lowbit.program.read import Program

_RNG = np.random.default_rng(3)
X = _RNG.normal(size=(2, 6, 8)).astype(np.float32) * 2 + 0.5
G = _RNG.uniform(0.5, 2, size=(8,)).astype(np.float32)
KEPT = np.arange(8) < 5
CAUSAL = np.tril(np.ones((6, 8), bool))
DATA = _RNG.uniform(size=(2, 8)) < 0.7
DATA[:, 0] = True
SOFTMAX = {
    "jax.nn": lambda x: jax.nn.softmax(x),
    "by hand": lambda x: jnp.exp(x - x.max(-1, keepdims=True)) / jnp.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True),
    "without a maximum": lambda x: jnp.exp(x) / jnp.exp(x).sum(-1)[..., None],
    "times a reciprocal": lambda x: jnp.exp(x) * (1 / jnp.exp(x).sum(-1, keepdims=True)),
    "exp of log_softmax": lambda x: jnp.exp(jax.nn.log_softmax(x)),
    "exp less logsumexp": lambda x: jnp.exp(x - jax.scipy.special.logsumexp(x, -1, keepdims=True)),
    "powers of two": lambda x: jnp.exp2(x) / jnp.exp2(x).sum(-1, keepdims=True),
    "another axis": lambda x: jax.nn.softmax(x, 1),
    "transposed": lambda x: jax.nn.softmax(x.T, 0).T,
    "vmapped": lambda x: jax.vmap(jax.nn.softmax, 2, 2)(x),
    "vmapped to another axis": lambda x: jax.vmap(jax.nn.softmax, 1, 2)(x),
    "jitted": lambda x: jax.jit(jax.nn.softmax)(x),
    "einsum": lambda x: jnp.exp(x) / jnp.einsum("...i->...", jnp.exp(x))[..., None],
    "one key": lambda x: jax.nn.softmax(x[..., :1]),
    "float16 inside": lambda x: jax.nn.softmax(x.astype(jnp.float16)).astype(jnp.float32),
}  # fmt: skip
MASKED = {
    "where": lambda x, m: jax.nn.softmax(jnp.where(KEPT, x, -jnp.inf)),
    "where, turned round": lambda x, m: jax.nn.softmax(jnp.where(~KEPT, -1e9, x)),
    "added": lambda x, m: jax.nn.softmax(x + np.where(KEPT, 0, -1e9).astype(np.float32)),
    "where=": lambda x, m: jax.nn.softmax(x, where=KEPT),
    "two": lambda x, m: jax.nn.softmax(jnp.where(KEPT, jnp.where(CAUSAL, x, -1e9), -1e30)),
    "selected and added": lambda x, m: jax.nn.softmax(jnp.where(CAUSAL, x, -1e9) + np.where(KEPT, 0, -1e9).astype(np.float32)),
    "vmapped": lambda x, m: jax.vmap(lambda x: jax.nn.softmax(jnp.where(KEPT, x, -1e9)), 1, 1)(x),
    "booleans of the data": lambda x, m: jax.nn.softmax(jnp.where(m[:, None], x, -jnp.inf)),
    "integers of the data": lambda x, m: jax.nn.softmax(jnp.where(m.astype(jnp.int32)[:, None] > 0, x, -1e9)),
    "added integers": lambda x, m: jax.nn.softmax(x + (1.0 - m.astype(jnp.int32)[:, None].astype(jnp.float32)) * -1e9),
    "added booleans": lambda x, m: jax.nn.softmax(x + jnp.where(m[:, None], 0.0, -1e9)),
    "data and constant": lambda x, m: jax.nn.softmax(jnp.where(m[:, None] & CAUSAL, x, -1e9)),
}  # fmt: skip


def _centered(x, axis=-1):
    return x - x.mean(axis, keepdims=True)


def _squares(x):
    return (x * x).mean(-1, keepdims=True)


NORMS = {
    "standardize": lambda x: jax.nn.standardize(x),
    "rsqrt": lambda x: _centered(x) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-3),
    "over sqrt": lambda x: _centered(x) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-3),
    "times 1 / sqrt": lambda x: _centered(x) * (1 / jnp.sqrt(_squares(_centered(x)) + 1e-3)),
    "to the -1/2": lambda x: _centered(x) * (x.var(-1, keepdims=True) + 1e-3) ** -0.5,
    "squares less square": lambda x: _centered(x) * lax.rsqrt(_squares(x) - x.mean(-1, keepdims=True) ** 2 + 1e-3),
    "of n - 1": lambda x: _centered(x) / jnp.sqrt(x.var(-1, keepdims=True, ddof=1) + 1e-3),
    "without epsilon": lambda x: _centered(x) / x.std(-1, keepdims=True),
    "added negation": lambda x: (x + -x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-3),
    "another axis": lambda x: jax.nn.standardize(x, 1),
    "vmapped": lambda x: jax.vmap(jax.nn.standardize, 1, 1)(x),
    "vmapped to another axis": lambda x: jax.vmap(jax.nn.standardize, 2, 1)(x),
    "transposed": lambda x: jax.nn.standardize(x.T, 0).T,
    "gain inside": lambda x: _centered(x) * (lax.rsqrt(x.var(-1, keepdims=True) + 1e-3) * G),
    "root of x * x": lambda x: x * lax.rsqrt(_squares(x) + 1e-3),
    "root of squares": lambda x: x / jnp.sqrt(jnp.square(x).sum(-1, keepdims=True) / 8 + 1e-3),
    "root of x ** 2.0": lambda x: x * lax.rsqrt((x**2.0).sum(-1, keepdims=True) * 0.125 + 1e-3),
    "root in bfloat16": lambda x: x * lax.rsqrt(_squares(x).astype(jnp.bfloat16).astype(jnp.float32) + 1e-3),
    "length": lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True),
    "length and epsilon": lambda x: x * lax.rsqrt((x * x).sum(-1, keepdims=True) + 1e-2),
}
OTHERS = {
    "a share": lambda x: jnp.square(x) / jnp.square(x).sum(-1, keepdims=True),
    "another exponent below": lambda x: jnp.exp(x) / jnp.exp(2 * x).sum(-1, keepdims=True),
    "another axis below": lambda x: jnp.exp(x) / jnp.exp(x.swapaxes(0, 1)[:, :, ::-1][:2, :, :]).sum(-1, keepdims=True)[:, :1],
    "epsilon outside": lambda x: _centered(x) / (x.std(-1, keepdims=True) + 1e-3),
    "mean along another axis": lambda x: _centered(x, 1) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-3),
    "spread of what is not centered": lambda x: _centered(x) / jnp.sqrt(_squares(x) + 1e-3),
    "fourth powers": lambda x: x * lax.rsqrt((x**4).mean(-1, keepdims=True) + 1e-3),
    "negative": lambda x: -x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-3) * 0 + jnp.exp(-x).sum(-1, keepdims=True),
    "a bias on the squares": lambda x: x * lax.rsqrt(((x + 1) * x).mean(-1, keepdims=True) + 1e-3),
    "masked below alone": lambda x: jnp.exp(x) / jnp.where(KEPT, jnp.exp(x), 0).sum(-1, keepdims=True),
}  # fmt: skip


def _found(fn, *args):
    """What is found in ``fn``, and the values of everything around it."""
    program = flatten(trace(lambda p, *args: fn(*args), {}, args, {}))
    found = templates.find(program.equations, program.order, program.readers)
    made = [
        v for f in found.values() for v in (f.x, f.epsilon, f.kept, f.gain and f.gain[1], *_read(f)) if v is not None
    ]
    wanted = list(dict.fromkeys([*program.outs, *made, *(f.equations[-1].outs[0] for f in found.values())]))

    @jax.jit
    def values(*args):
        env = dict(zip(program.inputs, args, strict=True))

        def get(value):
            if value not in env and value.source is None:
                return jnp.asarray(value.value)
            if value not in env:
                env.update(zip(value.source.outs, again(value.source, [get(v) for v in value.source.ins]), strict=True))
            return env[value]

        return [get(v) for v in wanted]

    return list(found.values()), dict(zip(wanted, values(*args), strict=True)).__getitem__, program


def _read(found):
    """What a template's equations read from outside."""
    made = {v for e in found.equations for v in e.outs}
    return [v for e in found.equations for v in e.ins if v not in made]


def _defined(found, get):
    """The template's own equations on its own inputs: what gradients and observation take."""

    given = list(dict.fromkeys([found.x, *_read(found)]))

    @jax.jit
    def run(values):
        env = dict(zip(given, values, strict=True))
        for equation in found.equations:
            env.update(zip(equation.outs, again(equation, [env[v] for v in equation.ins]), strict=True))
        return env[found.equations[-1].outs[0]]

    return run([get(v) for v in given])


def _softmax(found, get):
    x = np.asarray(get(found.x), np.float64)
    kept = True if found.kept is None else np.asarray(get(found.kept))
    e = np.exp(x - x.max(found.axis, keepdims=True)) * kept
    return e / e.sum(found.axis, keepdims=True)


def _norm(found, get):
    x = np.asarray(get(found.x), np.float64)
    x = x - x.mean(found.axis, keepdims=True) if found.is_centered else x
    y = x / np.sqrt((x * x).mean(found.axis, keepdims=True) + np.float64(get(found.epsilon)))
    return y if found.gain is None else y * np.asarray(get(found.gain[1]), np.float64)


def _check(fn, formula, kind, *args, rtol=1e-5):
    (found,), get, program = _found(fn, *args)
    assert found.kind == kind
    result = found.equations[-1].outs[0]
    np.testing.assert_allclose(np.asarray(get(result), np.float64), formula(found, get), rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(_defined(found, get), get(result), rtol=rtol, atol=1e-6)
    assert isinstance(program, Program)
    return found


@pytest.mark.parametrize("name", SOFTMAX)
def test_every_spelling_of_softmax(name):
    found = _check(SOFTMAX[name], _softmax, "softmax", X, rtol=2e-3 if "16" in name else 1e-5)
    assert found.kept is None


@pytest.mark.parametrize("name", MASKED)
def test_every_spelling_of_a_mask(name):
    found = _check(MASKED[name], _softmax, "softmax", X, DATA)
    assert found.kept is not None
    assert found.kept.is_data == ("data" in name or "added " in name)


@pytest.mark.parametrize("name", NORMS)
def test_every_spelling_of_a_norm(name):
    found = _check(NORMS[name], _norm, "norm", X, rtol=1e-2 if "bfloat16" in name else 2e-5)
    assert found.is_centered == (not name.startswith(("root", "length")))


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_neither_is_not_found(name):
    assert not _found(OTHERS[name], X)[0]


def test_what_is_read_elsewhere_is_not_hidden():
    def twice(x):
        spread = _squares(x)
        return x * lax.rsqrt(spread + 1e-3), spread

    assert not _found(twice, X)[0]


def test_a_constant_that_masks_and_biases_says_so():
    bias = np.where(KEPT, np.arange(8) / 10, -1e9).astype(np.float32)
    with pytest.raises(ValueError, match=r"test_templates\.py:\d+.*masks.*biases at once"):
        _found(lambda x: jax.nn.softmax(x + bias), X)


def test_attention_of_jax():
    """Heads, groups of them, causal masks and masks of the data."""
    q = _RNG.normal(size=(2, 6, 4, 8)).astype(np.float32)
    k = q[:, :, :2] + 1
    for kwargs in (
        {},
        {"is_causal": True},
        {"mask": DATA[:, None, None, :6]},
        {"mask": DATA[:, None, None, :6], "is_causal": True},
    ):
        found = _check(lambda q, kwargs=kwargs: jax.nn.dot_product_attention(q, q, q, **kwargs), _softmax, "softmax", q)
        assert (found.kept is None) == (not kwargs)
    _check(lambda q, k: jax.nn.dot_product_attention(q, k, k, is_causal=True), _softmax, "softmax", q, k)
