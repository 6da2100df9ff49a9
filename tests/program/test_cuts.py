"""Values that everything goes through, against the removal of each one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.program.axes import rooted, stripped
from lowbit.program.cuts import Cuts
from lowbit.program.read import read

SEEN = ("add", "mul", "tanh", "exp", "reduce_sum", "broadcast_in_dim", "neg", "convert_element_type", "sub")


def _any_function(rng):
    """A random function of two arrays: a product now and then, masks of integers, elementwise otherwise."""
    kinds = rng.integers(0, 7, 14)
    picks = rng.integers(0, 4, (14, 2))

    def fn(x, y, i):
        values = [x, y]
        for kind, (a, b) in zip(kinds, picks, strict=True):
            a, b = values[-1 - a % len(values)], values[-1 - b % len(values)]
            made = [
                lambda a=a, b=b: a + b,
                lambda a=a, b=b: a * b,
                lambda a=a: jnp.tanh(a),
                lambda a=a: a - a.sum(-1, keepdims=True),
                lambda a=a: jnp.exp(a) + i.astype(jnp.float32),
                lambda a=a, b=b: a @ b,
                lambda a=a: -a,
            ][kind]()
            values.append(made)
        return values[-1]

    return fn


def _walls(value, without):
    """The products and inputs that a value goes back to on a path that does not meet ``without``."""
    found, seen, todo = set(), set(), [value]
    while todo:
        now, _ = stripped(*(lambda v: (v, rooted(v)))(todo.pop()))
        if now is without or now in seen or not now.is_data or not jnp.issubdtype(now.dtype, jnp.floating):
            continue
        seen.add(now)
        if now.source is None or now.source.name not in SEEN:
            found.add(now)
        else:
            todo += now.source.ins
    return found, seen


@pytest.mark.parametrize("seed", range(30))
def test_against_the_removal_of_each_value(seed):
    fn = _any_function(np.random.default_rng(seed))
    x, i = jnp.ones((3, 3)), jnp.ones((3,), jnp.int32)
    program = read(jax.make_jaxpr(fn)(x, x, i))
    order = {equation: n for n, equation in enumerate(program.equations)}
    (out,) = program.outs
    walls, reached = _walls(out, None)
    right = {v for v in reached if not _walls(out, v)[0] and _walls(v, None)[0]}
    assert walls
    assert Cuts(order).of(out) == right
