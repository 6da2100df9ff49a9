"""The view for matching: alike what computes alike, and never alike what does not. Polynomials are computed in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lowbit.program.axes import rooted
from lowbit.program.canonical import NotSeen, View, is_near
from lowbit.program.read import read

X = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
C = np.random.default_rng(2).uniform(0.5, 2.0, size=(4,)).astype(np.float32)


def _viewed(functions):
    """The polynomials of functions of ``(c, x)``, in one view."""
    program = read(jax.make_jaxpr(lambda c, x: [fn(c, x) for fn in functions])(C, X), fixed=1)
    view = View(program.inputs[1], limit=1000)
    return view, [view.of(out, rooted(out)) for out in program.outs]


class _Number:
    """What a polynomial is, in float64: every label an axis of its own."""

    def __init__(self, view, sizes):
        self.view, self.sizes = view, sizes
        self.names = [*sorted(k for k in sizes if isinstance(k, int)), *sorted(k for k in sizes if isinstance(k, str))]

    def placed(self, array, labels):
        array = np.asarray(array, np.float64)
        order = sorted((self.names.index(label), i) for i, label in enumerate(labels) if label is not None)
        array = np.transpose(
            array.reshape(array.shape), [*(i for _, i in order), *(i for i, n in enumerate(labels) if n is None)]
        )
        shape = [1] * len(self.names)
        for (name, _), n in zip(order, array.shape, strict=False):
            shape[name] = n
        return array.reshape(shape)

    def of(self, polynomial):
        return sum(c * self.term(term) for term, c in polynomial.items())

    def term(self, term):
        return functools.reduce(np.multiply, [np.power(self.atom(a), e) for a, e in term], np.float64(1))

    def atom(self, number):
        atom = self.view.atoms[number]
        if atom.kind in ("leaf", "constant"):
            return self.placed(X if atom.kind == "leaf" else C, atom.content[1])
        if atom.kind == "sum":
            bound, inside, count = atom.content
            assert count == self.sizes[bound]
            return self.term(inside).sum(self.names.index(bound), keepdims=True)
        if atom.kind == "exp":
            return np.exp(self.term(atom.content))
        if atom.kind == "log":
            return np.log(self.atom(atom.content))
        if atom.kind == "root":
            return self.of(self.view.polynomial(number))
        if atom.kind == "reduce_max":
            inner, bound = atom.content
            return self.atom(inner).max(self.names.index(bound), keepdims=True)
        raise AssertionError(atom.kind)


ALIKE = {
    "powers": [
        lambda c, x: x * x,
        lambda c, x: jnp.square(x),
        lambda c, x: x**2,
        lambda c, x: x**2.0,
        lambda c, x: lax.integer_pow(x, 2),
    ],
    "reciprocals": [lambda c, x: x / 3.0, lambda c, x: x * (1 / 3.0), lambda c, x: x / jnp.float32(3)],
    "differences": [lambda c, x: x - c, lambda c, x: -(c - x), lambda c, x: 2 * x - c - x],
    "transposes": [lambda c, x: x * c, lambda c, x: (x.T * c[:, None]).T, lambda c, x: jax.vmap(lambda r: r * c)(x)],
    "calls": [lambda c, x: jax.jit(lambda x: x * 2)(x), lambda c, x: x + x, lambda c, x: 2 * x],
    "roots": [
        lambda c, x: 1 / jnp.sqrt(x * x + 1),
        lambda c, x: lax.rsqrt(x * x + 1),
        lambda c, x: (x * x + 1) ** -0.5,
    ],
    "variances": [
        lambda c, x: x.var(-1, keepdims=True) + 0 * x,
        lambda c, x: (x * x).mean(-1, keepdims=True) - x.mean(-1, keepdims=True) ** 2 + 0 * x,
        lambda c, x: jnp.maximum(0, ((x - x.mean(-1, keepdims=True)) ** 2).sum(-1) / 4)[:, None] + 0 * x,
        lambda c, x: (x * (x - x.mean(-1, keepdims=True))).mean(-1, keepdims=True) + 0 * x,
    ],
    "softmax": [
        lambda c, x: jax.nn.softmax(x),
        lambda c, x: jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True),
        lambda c, x: jnp.exp(jax.nn.log_softmax(x)),
        lambda c, x: jax.nn.softmax(x + 7),
        lambda c, x: jax.vmap(jax.nn.softmax, 1, 1)(x.T).T,
    ],
}
OTHERS = [
    lambda c, x: x,
    lambda c, x: x**3,
    lambda c, x: abs(x),
    lambda c, x: jnp.sqrt(x * x),
    lambda c, x: x - x.mean(0, keepdims=True),
    lambda c, x: x - x.mean(1, keepdims=True),
    lambda c, x: jax.nn.softmax(x, 0),
    lambda c, x: jax.nn.softmax(2 * x),
    lambda c, x: lax.rsqrt(x * x + 1.001),
]


@pytest.mark.parametrize("name", ALIKE)
def test_what_computes_alike_is_alike(name):
    _, (first, *rest) = _viewed(ALIKE[name])
    assert all(is_near(first, other) for other in rest)


def test_what_computes_otherwise_is_not_alike():
    _, seen = _viewed([fns[0] for fns in ALIKE.values()] + OTHERS)
    assert not any(is_near(a, b) for i, a in enumerate(seen) for b in seen[:i])


@pytest.mark.parametrize("name", ALIKE)
def test_a_polynomial_is_the_function(name):
    view, seen = _viewed(ALIKE[name])
    number = _Number(view, {0: 3, 1: 4, "~0": 4})
    for fn, polynomial in zip(ALIKE[name], seen, strict=True):
        found = np.broadcast_to(number.of(polynomial), (3, 4, 1))[..., 0]
        np.testing.assert_allclose(found, np.asarray(fn(C, X), np.float64), rtol=1e-5, atol=1e-6)


def test_other_data_is_not_seen():
    program = read(jax.make_jaxpr(lambda x, y: x + y)(X, X))
    with pytest.raises(NotSeen):
        View(program.inputs[0]).of(program.outs[0], (0, 1))
